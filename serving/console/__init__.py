"""The console at `/console`: a page about the rollout, served beside the API by the same application."""
