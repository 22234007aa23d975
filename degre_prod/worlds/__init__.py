"""Simulated worlds whose true list value is known: the simulator, the truth, and the reference lists.

The truth is for tests, reports and gates; no model may read it.
"""
