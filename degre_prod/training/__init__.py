"""Training and the worker group that training and mining share."""
