"""Value against price: evaluator calls on the left, seconds of learning on the right. An SVG text."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

_STYLE = {"svg.hashsalt": "quality", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
_FREE = {"evaluator_calls": 1, "train_seconds": 0.1}  # a method that pays less is a level line


def value_against_price(document: dict[str, Any]) -> str:
    """Draw the document's curves, teachers left out, best method first in the legend."""
    methods = document["methods"]
    names = [name for name in document["curves"] if not methods[name]["teacher"]]
    names.sort(key=lambda name: -methods[name]["mean"])
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        by_calls, by_seconds = figure.subplots(1, 2, sharey=True)
        for index, name in enumerate(names):
            look = {"color": "black", "lw": 2.2} if name == "degre" else {"color": f"C{index % 10}", "lw": 1.3}
            points = document["curves"][name]
            _draw(by_calls, points, "evaluator_calls", look)
            _draw(by_seconds, points, "train_seconds", {**look, "label": name})
        for side, title in (
            (by_calls, "evaluator calls while learning"),
            (by_seconds, "seconds of learning, one thread"),
        ):
            side.set(xscale="log", xlabel=title)
            side.grid(color="#e2e8f0")
            side.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            side.xaxis.set_major_formatter(EngFormatter(sep=""))
            side.xaxis.set_minor_formatter(NullFormatter())
        by_calls.set_ylabel("true value over reference")
        count = len(document["seeds"])
        figure.suptitle(f"{document['size']} {document['world']}, {count} seed{'s' if count > 1 else ''}")
        figure.legend(loc="outside right center", frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _draw(axes: Axes, points: list[dict[str, float]], price: str, look: dict[str, Any]) -> None:
    if points[-1][price] < _FREE[price]:
        axes.axhline(points[-1]["mean"], ls=":", **look)
    else:
        axes.plot([p[price] for p in points], [p["mean"] for p in points], marker="o", ms=4, **look)
