"""Feast definitions, built from a data set's schema.yaml. Imports nothing of the other packages."""
