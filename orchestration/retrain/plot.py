"""A night's timeline as an SVG, in the style of the reports."""

from __future__ import annotations

from collections.abc import Sequence

from orchestration.report.plots import BLUE, PALE, canvas, rows_from_top
from orchestration.retrain.journal import Entry


def timeline(entries: Sequence[Entry]) -> str:
    """Steps one below the other, each beginning where the one before it ended; what had been done before is pale.

    Time between two starts of the program is left out.
    """
    begins = [sum(entry.seconds for entry in entries[:index]) for index in range(len(entries))]
    with canvas(0.7 + 0.3 * len(entries)) as drawing:
        axes = drawing.figure.subplots()
        colours = [PALE if entry.kept else BLUE for entry in entries]
        seconds = [entry.seconds for entry in entries]
        bars = axes.barh([entry.step for entry in entries], seconds, left=begins, color=colours, height=0.65)
        axes.bar_label(bars, [f"{value:.1f} s" for value in seconds], padding=4)
        rows_from_top(axes, sum(seconds) * 1.15)
        axes.set_xlabel("seconds of work")
    return drawing.svg
