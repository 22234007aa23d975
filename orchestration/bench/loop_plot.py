"""The plot of `degre bench loop`: what lists are worth from day to day, in the market that drifts and in the one that does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from degre_prod.artefact import written_aside

_STYLE = {"svg.hashsalt": "loop", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
_LOOKS: dict[str, dict[str, Any]] = {
    "oracle": {"color": "#94a3b8", "ls": "--", "label": "trained on that day's own 20,000 logs"},
    "loop": {"color": "black", "lw": 2.2, "marker": "o", "label": "loop, retrained every night"},
    "frozen": {"color": "C3", "marker": "s", "label": "frozen, the bundle of day 0"},
    "input_order": {"color": "C0", "ls": ":", "label": "input order"},
}


def draw(document: Mapping[str, Any], out: Path) -> None:
    """Write `out`.svg and `out`.png."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        drifting, still = figure.subplots(1, 2, sharey=True)
        logs = f"{document['logs']:,}"
        for name, look in _LOOKS.items():
            _line(drifting, document[name], {**look, "label": look["label"].replace("20,000", logs)})
        _line(still, document["control_loop"], _LOOKS["loop"])
        _line(still, document["control_frozen"], _LOOKS["frozen"])
        _line(still, document["control_input_order"], _LOOKS["input_order"])
        drifting.set(
            title=f"taste turns {document['degrees_a_day']:g}° a day: {document['gain_over_frozen']:+.1%} over frozen",
            ylabel="expected clicks a list",
        )
        still.set(title=f"taste stays: {document['control_gain']:+.1%}")
        for axes in (drifting, still):
            axes.set_xlabel("day")
            axes.grid(color="#e2e8f0")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*drifting.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        for suffix, more in ((".svg", {"metadata": {"Date": None, "Creator": None}}), (".png", {"dpi": 130})):
            with written_aside(out.with_suffix(suffix)) as aside:
                figure.savefig(aside, format=suffix[1:], **more)


def _line(axes: Axes, values: list[float], look: Mapping[str, Any]) -> None:
    axes.plot(range(1, len(values) + 1), values, ms=4.5, **look)
