"""The online path: one request in, one validated list out, within a deadline."""
