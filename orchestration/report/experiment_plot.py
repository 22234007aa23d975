"""Plot of an experiment over time: the primary metric's always-valid interval look by look, as SVG text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter

from degre_prod.experiments.results import ArmResult, Results
from orchestration.report.plots import BLUE, GREY, ORANGE, PALE, canvas


def effect_over_time(looks: Sequence[tuple[float, Results]], arm: str, smallest_effect: float) -> str:
    """One treatment's effect and interval by the number of hours since the start; looks that know nothing yet are left out."""
    found = [(at, _arm(results, arm)) for at, results in looks]
    known = [(at, a.primary) for at, a in found if a is not None and np.isfinite([a.primary.low, a.primary.high]).all()]
    with canvas(3.1) as drawing:
        axes = drawing.figure.subplots()
        axes.axhline(0, color=GREY, lw=1)
        axes.axhline(smallest_effect, color=ORANGE, lw=1, ls=":")
        if known:
            hours = [at for at, _ in known]
            axes.fill_between(hours, [p.low for _, p in known], [p.high for _, p in known], color=PALE, alpha=0.6, lw=0)
            axes.plot(hours, [p.effect for _, p in known], color=BLUE, marker="" if len(known) > 40 else "o", ms=3)
            metric = known[-1][1].metric
        else:
            metric = "primary metric"
            axes.text(0.5, 0.6, "too few users yet", transform=axes.transAxes, ha="center", color=GREY)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:+.1%}"))
        axes.set(xlabel="hours", ylabel=f"effect on {metric}")
    return drawing.svg


def _arm(results: Results, name: str) -> ArmResult | None:
    return next((arm for arm in results.arms if arm.arm == name), None)
