"""Converters from published data sets to the impression-log contract, with honest event timestamps."""
