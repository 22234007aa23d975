"""Beam mining of high-value unexposed lists."""
