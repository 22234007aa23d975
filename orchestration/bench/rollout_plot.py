"""Plot of the rollout statistics, as SVG and PNG: share of experiments decided by the time so many users were seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from degre_prod.artefact import written_aside

_STYLE = {"svg.hashsalt": "rollout", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
_LOOKS: dict[str, dict[str, Any]] = {
    "sequential": {"color": "black", "lw": 2.0, "label": "always valid"},
    "sequential_cuped": {"color": "C0", "lw": 2.0, "label": "always valid, CUPED"},
    "fixed_horizon": {"color": "C2", "lw": 1.4, "ls": "--", "label": "one look, fixed beforehand"},
    "naive_peeking": {"color": "C3", "lw": 1.4, "label": "that test at every look"},
}


def draw_decisions(document: dict[str, Any], curves: dict[str, Any], out: Path) -> None:
    """Write `out`.svg and `out`.png: A/A at the left, A/B at the right."""
    setting = document["setting"]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.5, 4.0), layout="constrained")
        aa, ab = figure.subplots(1, 2)
        for axes, kind in ((aa, "aa"), (ab, "ab")):
            for way, look in _LOOKS.items():
                axes.plot(curves[kind][way]["users"], curves[kind][way]["share"], **look)
            axes.set(xlabel="users in both arms", ylim=(0, None), xlim=(0, setting["users"]))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.grid(color="#e2e8f0")
        aa.axhline(setting["alpha"], color="#64748b", ls=":")
        aa.set(title="no effect: false alarms so far", ylabel="experiments decided")
        ab.set(title=f"true effect of {setting['effect']:+.0%}: decided so far", ylim=(0, 1.02))
        ab.legend(loc="lower right", frameon=False)
        for suffix, options in ((".svg", {"metadata": {"Date": None, "Creator": None}}), (".png", {"dpi": 130})):
            with written_aside(out.with_suffix(suffix)) as aside:
                figure.savefig(aside, format=suffix[1:], **options)
