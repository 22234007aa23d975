"""The figures of `degre bench loop` from its days: values by day, gains with intervals, gates, what exploration cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from orchestration.bench.loop_arm import DAY, VALUES, Arm, closed_accounts

LAST: Final = 3  # days that a gain is the mean of
_RESAMPLES: Final = 2000

Values = Mapping[str, np.ndarray]


def day_values(arm: Arm) -> list[Values]:
    """True values by request of each day: loop, frozen, input_order (evaluation requests), served, unexplored (served ones)."""
    out: list[Values] = []
    for day in range(1, arm.days + 1):
        with np.load(arm.day(day) / VALUES, allow_pickle=False) as file:
            out.append(dict(file))
    return out


def gain(days: Sequence[Values]) -> float:
    """Loop over frozen − 1, both means over the last days."""
    last = days[-LAST:]
    loop, frozen = (np.mean([d[name].mean() for d in last]) for name in ("loop", "frozen"))
    return float(loop / frozen - 1)


def gain_interval(days: Sequence[Values], *, less: Sequence[Values] | None = None) -> tuple[float, float]:
    """95 % bootstrap interval of the gain, requests drawn anew within each day, loop and frozen paired. `less`: a control
    with the same requests, whose gain is taken off, paired as well."""
    random = np.random.default_rng(0)
    gains = np.zeros(_RESAMPLES)
    for r in range(_RESAMPLES):
        drawn = [random.integers(0, len(d["loop"]), len(d["loop"])) for d in days[-LAST:]]
        gains[r] = gain([_take(d, i) for d, i in zip(days[-LAST:], drawn, strict=True)])
        if less is not None:
            gains[r] -= gain([_take(d, i) for d, i in zip(less[-LAST:], drawn, strict=True)])
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)


def summary(drift: Arm, control: Arm, oracle: Sequence[np.ndarray]) -> dict[str, Any]:
    """The benchmark's document. `oracle`: true values by request of each day's own bundle."""
    days, still = day_values(drift), day_values(control)
    share = [_recovered(d, best) for d, best in zip(days, oracle, strict=True)]
    served = {name: np.mean([d[name].mean() for d in days]) for name in ("served", "unexplored")}
    accounts = {"drift": closed_accounts(drift), "control": closed_accounts(control)}
    return {
        "seed": drift.market.seed,
        "days": drift.days,
        "degrees_a_day": drift.market.degrees,
        "loop": _means(days, "loop"),
        "frozen": _means(days, "frozen"),
        "oracle": [round(float(best.mean()), 4) for best in oracle],
        "input_order": _means(days, "input_order"),
        "gain_over_frozen": round(gain(days), 4),
        "gain_interval": _rounded(gain_interval(days)),
        "control_gain": round(gain(still), 4),
        "control_interval": _rounded(gain_interval(still)),
        "gain_less_control_interval": _rounded(gain_interval(days, less=still)),
        "control_loop": _means(still, "loop"),
        "control_frozen": _means(still, "frozen"),
        "recovered": [round(s, 4) for s in share],
        "recovered_last_day": round(share[-1], 4),
        "exploration_share": drift.settings.serving.exploration_share,
        "served_value": _means(days, "served"),
        "unexplored_value": _means(days, "unexplored"),
        "exploration_cost": round(float(1 - served["served"] / served["unexplored"]), 4),
        "gates": {"drift": nights(drift), "control": nights(control)},
        "events": accounts["drift"]["events"],
        "accounts": accounts,
    }


def nights(arm: Arm) -> dict[str, Any]:
    """How the nights between the days ended, which gates looked at them, and why any was stopped."""
    passed, stopped = 0, []
    gates: dict[str, int] = {}
    for day in range(1, arm.days):
        night = json.loads((arm.day(day) / DAY).read_text())["night"]
        passed += bool(night["activated"])
        if not night["activated"]:
            stopped.append({"day": day, "reason": night["reason"]})
        for gate in night["gates"]:
            gates[gate["name"]] = gates.get(gate["name"], 0) + bool(gate["passed"])
    return {"activated": passed, "stopped": stopped, "passed_by_gate": gates}


def print_table(document: Mapping[str, Any]) -> None:
    """Expected clicks a list by day, on stderr."""
    names = ("loop", "frozen", "oracle", "input_order", "recovered", "served_value", "control_loop", "control_frozen")
    table = Table(title="expected clicks a list by day", box=None, header_style="")
    for name in ("day", *(n.replace("_", " ") for n in names)):
        table.add_column(name, justify="right")
    for day in range(document["days"]):
        table.add_row(str(day + 1), *(f"{document[name][day]:.4f}" for name in names))
    Console(stderr=True, width=110).print(table)


def write_markdown(document: Mapping[str, Any], out: Path) -> None:
    """The same table as Markdown."""
    from degre_prod.artefact import write_text

    names = ("input_order", "frozen", "loop", "oracle", "recovered", "served_value")
    lines = ["| day | " + " | ".join(n.replace("_", " ") for n in names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {day + 1} | " + " | ".join(f"{document[name][day]:.3f}" for name in names) + " |"
        for day in range(document["days"])
    ]
    write_text(out, "\n".join(lines) + "\n")


def _recovered(day: Values, best: np.ndarray) -> float:
    """(loop − frozen) / (oracle − frozen) of a day."""
    frozen = day["frozen"].mean()
    return float((day["loop"].mean() - frozen) / (best.mean() - frozen))


def _take(day: Values, rows: np.ndarray) -> Values:
    return {name: day[name][rows] for name in ("loop", "frozen")}


def _means(days: Sequence[Values], name: str) -> list[float]:
    return [round(float(d[name].mean()), 4) for d in days]


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(bound, 4) for bound in interval]
