"""The report's plots, each an SVG text. Drawn narrow, so that their letters stay readable on a phone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from orchestration.report.data import CurvePoint, Reliability, ValueTable

BLUE, ORANGE, GREY, PALE = "#2b6cb0", "#c05621", "#5f6b7a", "#a9c4e2"
_WIDTH = 5.4  # inches
_STYLE = {
    "svg.hashsalt": "report",  # same data, same bytes
    "text.parse_math": False,  # a dollar sign is a dollar sign
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#2d3748",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "#2d3748",
    "ytick.labelcolor": "#2d3748",
    "legend.frameon": False,
}


class _Drawing:
    """A figure and, once drawn, its SVG."""

    def __init__(self, height: float) -> None:
        self.figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        self.svg = ""


@contextmanager
def canvas(height: float) -> Iterator[_Drawing]:
    """A figure of the report's width and style, `height` inches high."""
    with mpl.rc_context(_STYLE):
        drawing = _Drawing(height)
        yield drawing
        out = io.StringIO()
        drawing.figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        drawing.svg = out.getvalue()


def stage_times(seconds: Mapping[str, float]) -> str:
    """Horizontal bars of the run's stages, first stage on top."""
    names, values = list(seconds), list(seconds.values())
    with canvas(0.7 + 0.34 * len(names)) as drawing:
        axes = drawing.figure.subplots()
        bars = axes.barh(names, values, color=BLUE, height=0.65)
        axes.bar_label(bars, [_seconds(v) for v in values], padding=4)
        rows_from_top(axes, max(values) * 1.18)
        axes.set_xlabel("seconds")
    return drawing.svg


def learning_curve(points: Sequence[CurvePoint]) -> str:
    """Training and validation loss by step."""
    with canvas(3.1) as drawing:
        axes = drawing.figure.subplots()
        mark = "o" if len(points) <= 40 else ""
        axes.plot(
            [p.step for p in points], [p.train for p in points], color=BLUE, marker=mark, ms=3.5, label="training"
        )
        held_out = [(p.step, p.validation) for p in points if p.validation is not None]
        if held_out:
            steps, losses = zip(*held_out, strict=True)
            axes.plot(steps, losses, color=ORANGE, marker=mark, ms=3.5, ls="--", label="validation")
        axes.set(xlabel="epoch or step", ylabel="loss")
        if all(float(p.step).is_integer() for p in points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    return drawing.svg


def reliability(bins: Reliability) -> str:
    """Observed against predicted with the diagonal, and below it how many examples each bin holds."""
    with canvas(4.5) as drawing:
        above, below = drawing.figure.subplots(2, 1, height_ratios=(3.2, 1), sharex=True)
        top = max([*bins.predicted, *bins.observed, 1e-9]) * 1.08
        above.plot([0, top], [0, top], color=GREY, lw=1, ls=":", label="perfect")
        above.plot(bins.predicted, bins.observed, color=BLUE, marker="o", ms=4.5, label="measured")
        above.set(ylabel="observed", xlim=(0, top), ylim=(0, top))
        above.legend(loc="upper left")
        below.vlines(bins.predicted, 0, bins.count, color=PALE, lw=6)
        below.set(xlabel="predicted", ylabel="count", ylim=(0, max([1, *bins.count]) * 1.15))
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        below.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}k" if v >= 1000 else f"{v:g}"))
    return drawing.svg


def values_by_method(table: ValueTable) -> str:
    """Horizontal bars with 95 % intervals, the first method on top; the reference at 1 where values are shares."""
    methods = table.methods
    label = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # readable over the reference line
    with canvas(0.9 + 0.4 * len(methods)) as drawing:
        axes = drawing.figure.subplots()
        colours = [BLUE if m.highlight else PALE for m in methods]
        axes.barh(range(len(methods)), [m.mean for m in methods], color=colours, height=0.62)
        axes.set_yticks(range(len(methods)), [m.name for m in methods])
        ends = [m.mean if m.high is None else max(m.mean, m.high) for m in methods]
        limit = max([*ends, 1.0 if table.share_of_reference else 0.0]) * 1.2
        for row, (method, end) in enumerate(zip(methods, ends, strict=True)):
            if method.low is not None and method.high is not None:
                reach = [[method.mean - method.low], [method.high - method.mean]]
                axes.errorbar(method.mean, row, xerr=reach, color="#1a202c", capsize=3, lw=1.2)
            axes.annotate(f"{method.mean:.3g}", (end, row), (5, 0), textcoords="offset points", va="center", bbox=label)
        if table.share_of_reference:
            axes.axvline(1.0, color=ORANGE, ls="--", lw=1.3)
            axes.annotate(
                "reference",
                (1.0, 1.0),
                (0, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                color=ORANGE,
            )
        rows_from_top(axes, limit)
        axes.set_xlabel(table.unit)
    return drawing.svg


def latency_histogram(times_ms: Sequence[float]) -> str:
    """How the answers' times are spread; the slowest 0.5 % are counted in the label instead of drawn."""
    times, (p50, p99, cut) = np.asarray(times_ms), np.percentile(times_ms, [50, 99, 99.5])
    with canvas(3.1) as drawing:
        axes = drawing.figure.subplots()
        axes.hist(times[times <= cut], bins=40, color=PALE)
        _marks(axes, p50, p99)
        beyond = int((times > cut).sum())
        axes.set(xlabel="ms" + (f" ({beyond} slower than {cut:.3g} ms not drawn)" if beyond else ""), ylabel="requests")
    return drawing.svg


def latency_share(times_ms: Sequence[float]) -> str:
    """The share of answers within a time (empirical distribution), time on a logarithmic axis."""
    p50, p99 = np.percentile(times_ms, [50, 99])
    shares = np.unique(np.concatenate([np.linspace(0, 1, 201), np.linspace(0.98, 1, 41)]))
    with canvas(3.1) as drawing:
        axes = drawing.figure.subplots()
        axes.plot(np.quantile(times_ms, shares), shares * 100, color="#1a202c", lw=1.6)
        _marks(axes, p50, p99)
        _log_ms(axes)
        axes.set(xlabel="ms, logarithmic", ylabel="% of requests answered", ylim=(0, 102))
    return drawing.svg


def stage_latency(stages: Mapping[str, Sequence[float]]) -> str:
    """A box a stage: median, middle half, whiskers from the 1st to the 99th percentile."""
    names = [name for name, times in stages.items() if len(times)]
    with canvas(0.9 + 0.42 * len(names)) as drawing:
        axes = drawing.figure.subplots()
        axes.boxplot(
            [np.maximum(stages[name], 1e-3) for name in names],  # a logarithmic axis has no zero
            orientation="horizontal",
            tick_labels=names,
            whis=(1, 99),
            showfliers=False,
            widths=0.55,
            patch_artist=True,
            boxprops={"facecolor": PALE, "edgecolor": BLUE},
            medianprops={"color": "#1a202c", "lw": 1.6},
            whiskerprops={"color": BLUE},
            capprops={"color": BLUE},
        )
        _log_ms(axes)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("ms, logarithmic")
    return drawing.svg


def rows_from_top(axes: Axes, limit: float) -> None:
    """Rows from the top, room for the labels at the right."""
    axes.set_xlim(0, limit or 1.0)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _marks(axes: Axes, p50: float, p99: float) -> None:
    axes.axvline(p50, color=BLUE, lw=1.5, label=f"p50 {p50:.3g} ms")
    axes.axvline(p99, color=ORANGE, lw=1.5, ls="--", label=f"p99 {p99:.3g} ms")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)  # above, where no curve can cross it


def _log_ms(axes: Axes) -> None:
    plain: Any = FuncFormatter(lambda v, _: f"{v:g}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(plain)
    low, high = axes.get_xlim()
    few = high / low < 30  # less than one and a half decades: the decades alone would say little
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:g}" if few and f"{v:e}"[0] in "25" else ""))


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"
