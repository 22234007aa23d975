"""Experiments on users: who gets which arm, and what the arms' figures allow to be said. Pure: no files, no network, no clock."""
