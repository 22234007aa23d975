"""The plots of a replay, each an SVG text in the report's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from orchestration.report.plots import BLUE, GREY, ORANGE, PALE, canvas

Rows = Sequence[Mapping[str, Any]]


def slots(by_slot: Rows) -> str:
    """The share of requests with the same item in a slot, with 95 % intervals."""
    there = [(t + 1, row) for t, row in enumerate(by_slot) if row["mean"] is not None]
    with canvas(2.9) as drawing:
        axes = drawing.figure.subplots()
        at = [t for t, _ in there]
        means = [row["mean"] for _, row in there]
        axes.bar(at, means, color=PALE, width=0.7)
        axes.errorbar(at, means, yerr=[_half(row) for _, row in there], fmt="none", color="#1a202c", capsize=3, lw=1.2)
        axes.set(xlabel="slot", ylabel="same item", ylim=(0, 1.05), xticks=at)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return drawing.svg


def differences(segments: Rows) -> str:
    """The judged difference of each segment with its 95 % interval, the first on top."""
    with canvas(0.9 + 0.3 * len(segments)) as drawing:
        axes = drawing.figure.subplots()
        axes.axvline(0, color=GREY, lw=1)
        for y, row in enumerate(segments):
            found = row["difference"]
            sure = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
            colour = GREY if not sure else BLUE if found["mean"] > 0 else ORANGE
            axes.errorbar(found["mean"], y, xerr=_half(found), fmt="o", ms=4.5, color=colour, capsize=2.5, lw=1.3)
        axes.set_yticks(range(len(segments)), [str(row["value"])[:28] for row in segments])
        axes.invert_yaxis()
        axes.set_xlabel("judged value, bundle less shown")
    return drawing.svg


def hours(segments: Rows) -> str:
    """Judged value of both lists by hour of the day (UTC)."""
    at = [int(row["value"]) for row in segments]
    with canvas(2.9) as drawing:
        axes = drawing.figure.subplots()
        for key, colour, label in (("judged_answered", BLUE, "bundle"), ("judged_shown", ORANGE, "shown")):
            means = [row[key]["mean"] for row in segments]
            axes.errorbar(
                at,
                means,
                yerr=[_half(row[key]) for row in segments],
                color=colour,
                marker="o",
                ms=4,
                lw=1.3,
                label=label,
            )
        axes.set(xlabel="hour, UTC", ylabel="judged value", xlim=(-0.7, 23.7), xticks=range(0, 24, 3))
        axes.legend()
    return drawing.svg


def moves(rows: Rows, label: str) -> str:
    """How much more or less often something is shown; risen to the right."""
    with canvas(0.9 + 0.3 * len(rows)) as drawing:
        axes = drawing.figure.subplots()
        values = [row["change"] for row in rows]
        axes.barh(range(len(rows)), values, color=[BLUE if v > 0 else ORANGE for v in values], height=0.65)
        axes.axvline(0, color=GREY, lw=1)
        axes.set_yticks(range(len(rows)), [str(row["name"])[:28] for row in rows])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
    return drawing.svg


def _half(row: Mapping[str, Any]) -> float:
    """Half the interval; 0 where there is none, as of a single request."""
    return 0.0 if row["low"] is None else float(np.subtract(row["high"], row["mean"]))
