"""Constraints on lists: what a user may ask for, and the one mask that mining, targets, training and serving share."""
