"""Plots of an experiment over time: a metric's always-valid interval, stage by stage, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from orchestration.report.plots import BLUE, GREY, ORANGE, PALE, canvas

Look = tuple[float, float, float, float]
"""Hours since the start, estimate, low, high."""


def effect_over_time(stages: Mapping[str, Sequence[Look]], what: str, bound: float) -> str:
    """A metric's estimate and interval by the hours since the start, each stage on its own; looks that know nothing yet
    (infinite or NaN) are left out. `bound`: the smallest effect worth having, or the harm that is allowed."""
    known = {
        name: np.array(looks)[np.isfinite(np.array(looks)).all(1)]
        for name, looks in stages.items()
        if len(looks) and np.isfinite(np.array(looks)).all(1).any()
    }
    long = any(looks_R4[-1, 0] >= 2 for looks_R4 in known.values())
    unit, each = ("hours", 1) if long else ("minutes", 60)
    with canvas(3.1) as drawing:
        axes = drawing.figure.subplots()
        axes.axhline(0, color=GREY, lw=1)
        axes.axhline(bound, color=ORANGE, lw=1, ls=":")
        for name, looks_R4 in known.items():
            hours, estimate, low, high = looks_R4.T
            times = hours * each
            axes.fill_between(times, low, high, color=PALE, alpha=0.6, lw=0)
            axes.plot(times, estimate, color=BLUE, marker="" if len(times) > 40 else "o", ms=3)
            axes.annotate(
                name, (times[0], 1.0), xycoords=("data", "axes fraction"), color=GREY, fontsize=8, va="bottom"
            )
        if known:
            _frame(axes, list(known.values()), bound)
            axes.xaxis.set_major_locator(MaxNLocator(5))
        else:
            axes.text(0.5, 0.6, "too few users yet", transform=axes.transAxes, ha="center", color=GREY)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:+.1%}"))
        axes.set(xlabel=unit, ylabel=what)
    return drawing.svg


def _frame(axes: Axes, stages: Sequence[np.ndarray], bound: float) -> None:
    """Show what the newer two thirds of the newest stage hold: the first intervals of a stage, and those of small stages
    before, are so wide that nothing else would be seen."""
    newer = stages[-1][len(stages[-1]) // 3 :]
    low, high = min(newer[:, 2].min(), 0.0, bound), max(newer[:, 3].max(), 0.0, bound)
    margin = 0.15 * (high - low)
    axes.set_ylim(low - margin, high + margin)
