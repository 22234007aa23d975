"""Plots of the quality benchmark, as SVG and PNG: value against price, and value by world."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from degre_prod.artefact import written_aside

_STYLE = {"svg.hashsalt": "quality", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
_FREE = {"evaluator_calls": 1, "train_seconds": 0.1}  # a method that pays less is a level line


def draw_curves(document: dict[str, Any], out: Path) -> None:
    """Write `out`.svg and `out`.png: the document's curves, the last point with its 95 % interval, teachers left out, best method
    first in the legend."""
    methods = document["methods"]
    names = [name for name in document["curves"] if not methods[name]["teacher"]]
    names.sort(key=lambda name: -methods[name]["mean"])
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 5.2), layout="constrained")
        shown = [p["mean"] for name in names for p in document["curves"][name]]
        levels = bands(shown + [end for name in names for end in methods[name]["interval"]])
        heights = [2.5] * (len(levels) - 1) + [1]
        rows = figure.subplots(len(levels), 2, sharex="col", sharey="row", squeeze=False, height_ratios=heights)
        for (by_calls, by_seconds), level in zip(rows, levels, strict=True):
            for index, name in enumerate(names):
                look = (
                    {"color": "black", "lw": 2.2, "marker": "o"}
                    if name == "degre"
                    else {"color": f"C{index % 10}", "lw": 1.3, "marker": "os^"[index // 10 % 3]}
                )
                of = document["curves"][name], methods[name]["interval"]
                _draw(by_calls, *of, "evaluator_calls", look)
                _draw(by_seconds, *of, "train_seconds", {**look, "label": name})
            for side in (by_calls, by_seconds):
                side.set(xscale="log", ylim=level)
                side.grid(color="#e2e8f0")
                side.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
                side.xaxis.set_major_formatter(EngFormatter(sep=""))
                side.xaxis.set_minor_formatter(NullFormatter())
        rows[-1][0].set_xlabel("evaluator calls while learning")
        rows[-1][1].set_xlabel("seconds of learning, one thread")
        figure.supylabel("true value over reference", fontsize=10)
        count = len(document["seeds"])
        figure.suptitle(f"{document['size']} {document['world']}, {count} seed{'s' if count > 1 else ''}")
        figure.legend(*rows[0][1].get_legend_handles_labels(), loc="outside right center", frameon=False)
        _save(figure, out)


def bands(values: Sequence[float]) -> list[tuple[float, float]]:
    """The ranges of a vertical axis, upper one first: two where more than half of it would be empty between two values, so that
    methods close to each other can be told apart."""
    ordered = sorted(values)
    gap, cut = max((high - low, i) for i, (low, high) in enumerate(pairwise(ordered), 1))
    parts = [ordered[cut:], ordered[:cut]] if 2 * gap > ordered[-1] - ordered[0] else [ordered]
    return [(part[0] - (pad := 0.1 * (part[-1] - part[0]) + 0.002), part[-1] + pad) for part in parts]


def _draw(axes: Axes, points: list[dict[str, float]], interval: list[float], price: str, look: dict[str, Any]) -> None:
    if points[-1][price] < _FREE[price]:
        axes.axhline(points[-1]["mean"], ls=":", **{**look, "marker": None})
    else:
        axes.plot([p[price] for p in points], [p["mean"] for p in points], ms=4, **look)
        axes.plot([points[-1][price]] * 2, interval, color=look["color"], lw=0.8, marker="_", alpha=0.6)


def draw_worlds(documents: Sequence[dict[str, Any]], out: Path) -> None:
    """Write `out`.svg and `out`.png: every method's value with its interval, one panel a world, best method on top."""
    names = sorted({name for d in documents for name in d["methods"]}, key=lambda name: _mean_of(documents, name))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(2.2 + 2.1 * len(documents), 0.9 + 0.27 * len(names)), layout="constrained")
        panels = figure.subplots(1, len(documents), sharex=True, sharey=True, squeeze=False)[0]
        for axes, document in zip(panels, documents, strict=True):
            for row, name in enumerate(names):
                method = document["methods"].get(name)
                if method is not None:
                    low, high = method["interval"]
                    colour = "black" if name == "degre" else "#94a3b8" if method["teacher"] else "C0"
                    axes.plot([low, high], [row, row], color=colour, lw=1.6)
                    axes.plot(method["mean"], row, marker="o", ms=4.5, color=colour)
            axes.set(title=document["world"], yticks=range(len(names)), yticklabels=names)
            axes.grid(color="#e2e8f0", axis="x")
            axes.tick_params(axis="y", length=0)
        figure.supxlabel("true value over the reference, 95 % interval; grey: searches while answering", fontsize=10)
        _save(figure, out)


def _mean_of(documents: Sequence[dict[str, Any]], name: str) -> float:
    of = [d["methods"][name]["mean"] for d in documents if name in d["methods"]]
    return float(sum(of) / len(of))


def _save(figure: Figure, out: Path) -> None:
    with written_aside(out.with_suffix(".svg")) as aside:
        figure.savefig(aside, format="svg", metadata={"Date": None, "Creator": None})
    with written_aside(out.with_suffix(".png")) as aside:
        figure.savefig(aside, format="png", dpi=130)
