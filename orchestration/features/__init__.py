"""Features: registering, materialising, the point-in-time training set, and the online feed for replays."""
