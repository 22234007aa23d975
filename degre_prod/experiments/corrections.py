"""Several tests at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure"): the chance that any true
    null has one ≤ α is at most α, whatever the dependence. Always-valid p-values stay always valid, since the procedure
    is monotone in each of them. The order of the answer is that of the input.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in adjusted]
