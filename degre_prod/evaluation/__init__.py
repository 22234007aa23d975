"""Offline evaluation: lists by every method on held-out requests, and what they are worth."""
