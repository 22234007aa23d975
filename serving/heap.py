"""The garbage collector of a process that answers within milliseconds.

Parsing a hundred candidates makes a hundred objects, so Python's defaults collect several times a request, and every now
and then walk the whole heap of libraries and models: a pause of tens of milliseconds.
"""

from __future__ import annotations

import gc

YOUNG, MIDDLE, OLD = 10_000, 20, 50


def settle_heap() -> None:
    """Call it once everything long-lived is loaded: what is there now is never walked again, the rest rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
