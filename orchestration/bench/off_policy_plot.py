"""The plot of `degre bench off-policy`: how often intervals hold the truth, by question and estimator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from degre_prod.artefact import written_aside

_STYLE = {"svg.hashsalt": "off-policy", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def draw_coverage(document: Mapping[str, Any], out: Path) -> None:
    """Write `out`.svg and `out`.png; hollow marks are estimates that are called not estimable."""
    studies = document["studies"]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        panels = figure.subplots(1, len(studies), sharex=True, sharey=True)
        for axes, (name, study) in zip(panels, studies.items(), strict=True):
            names = list(study["estimators"])[::-1]
            axes.axvspan(0.90, 0.99, color="#e2e8f0", lw=0)
            axes.axvline(0.95, color="#94a3b8", lw=1)
            for row, estimator in enumerate(names):
                found = study["estimators"][estimator]
                fill = "C0" if found["estimable"] else "none"
                axes.plot(found["coverage"], row, marker="o", ms=6, mec="C0", mfc=fill, ls="none")
            axes.set(title=name.replace("_", " "), yticks=range(len(names)), yticklabels=names)
            axes.tick_params(axis="y", length=0)
        figure.supxlabel(
            f"share of {document['repetitions']} 95 % intervals that hold the truth; hollow: not estimable", fontsize=10
        )
        for suffix, more in ((".svg", {"metadata": {"Date": None, "Creator": None}}), (".png", {"dpi": 130})):
            with written_aside(out.with_suffix(suffix)) as aside:
                figure.savefig(aside, format=suffix[1:], **more)
