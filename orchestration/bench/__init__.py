"""Measurements behind `degre bench`."""
