"""The networks, in plain PyTorch. Axis letters: B requests, C candidates, L slots, K beams, D width, O objectives."""
