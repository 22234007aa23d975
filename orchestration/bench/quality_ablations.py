"""`degre bench ablations`: one choice of the method changed at a time; steps that a change does not touch are shared.

Each row is `degre` as a whole at other settings or on another log. Values are true clicks over the reference's on the same
test requests; the judge of every row is the one of the usual log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from degre_prod.artefact import write_json
from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError
from degre_prod.evaluation.ranking import paired_bootstrap
from orchestration.bench.quality_folders import seconds_of
from orchestration.bench.quality_jobs import Say, run_side_by_side
from orchestration.bench.quality_steps import DEGRE, Plan, SeedRun
from orchestration.bench.quality_summary import believed, judged, mean, true_values
from orchestration.bench.quality_transfer import TRANSFERS, transferred

TRANSFER: Final = "transfer"
USUAL: Final = "as usual"


@dataclass(frozen=True)
class Ablation:
    """Changes to sections of the settings (`evaluator.head` → value), and to the plan (the log, re-planning)."""

    settings: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)

    def apply(self, run: SeedRun) -> SeedRun:
        """The run with these changes; `mining.requests` may be a share of the usual number."""
        changed: Settings = run.plan.settings
        for dotted, value in self.settings.items():
            section, name = dotted.split(".")
            if dotted == "mining.requests":
                value = max(10, round(value * run.plan.settings.mining.requests))
            updated = getattr(changed, section).model_copy(update={name: value})
            changed = changed.model_copy(update={section: updated})
        return replace(run, plan=replace(run.plan, settings=changed, **self.plan))


def _each(key: str, values: Sequence[Any]) -> dict[str, Ablation]:
    return {f"{key.split('.')[1]} {value}": Ablation({key: value}) for value in values}


GROUPS: Final[dict[str, dict[str, Ablation]]] = {
    "prefix_state": _each("evaluator.prefix_state", ("additive", "products", "attention", "auto")),
    "head": _each("evaluator.head", ("count_markov", "continuation", "step")),
    "beams": _each("mining.beams", ("union", "prefix")),
    "width": _each("mining.beam_width", (2, 4, 8, 16)),
    "sweeps": _each("mining.sweeps", (0, 1, 2, 4)),
    "targets": {
        f"{targets}, alpha {alpha:g}, tau_q {tau_q:g}": Ablation(
            {"generator.targets": targets, "generator.alpha": alpha, "generator.tau_q": tau_q}
        )
        for targets in ("backed_up", "one_step")
        for alpha in (0.0, 0.5, 2.0)
        for tau_q in ((0.1, 0.3) if alpha else (0.3,))
    },
    "tau_w": _each("generator.tau_w", (0.03, 0.1, 0.3, 1.0)),
    "ensemble": {
        f"members {members}, kappa {kappa:g}": Ablation({"evaluator.members": members, "mining.pessimism": kappa})
        for members, kappa in ((1, 0.0), (2, 0.0), (2, 1.0), (3, 1.0), (3, 3.0))
    },
    "narrow_log": {
        f"tau .1, members {members}, kappa {kappa:g}": Ablation(
            {"evaluator.members": members, "mining.pessimism": kappa}, {"tau": 0.1}
        )
        for members, kappa in ((1, 0.0), (2, 1.0))
    },
    "exploration": {f"{share:.0%} random lists": Ablation(plan={"exploration": share}) for share in (0.0, 0.1)},
    "data": {f"{share:g} of the log": Ablation(plan={"log_share": share}) for share in (0.25, 0.5, 1.0)},
    "mined": {f"{share:g} of the requests": Ablation({"mining.requests": share}) for share in (0.1, 0.3, 1.0)},
    "on_policy": _each("generator.on_policy_rounds", (0, 1, 2)),
    "decoder": _each("generator.decoder", ("gru", "attention")),
}
ALL_GROUPS: Final = (*GROUPS, TRANSFER)


@dataclass(frozen=True)
class AblationWork:
    """All rows of one seed."""

    run: SeedRun
    groups: tuple[str, ...]


def bench_ablations(
    plan: Plan, runs: Sequence[SeedRun], groups: Sequence[str], *, out: Path, jobs: int = 1
) -> dict[str, Any]:
    """Learn every row, write ablations.json into `out` and return the document; ConfigurationError for an unknown group."""
    unknown = [name for name in groups if name not in ALL_GROUPS]
    if unknown or not groups:
        raise ConfigurationError(f"no group {', '.join(unknown) or 'named'}; there are {', '.join(ALL_GROUPS)}")
    work = [AblationWork(run, tuple(groups)) for run in runs]
    steps = 1 + sum(len(GROUPS.get(group, TRANSFERS[plan.size])) for group in groups)
    run_side_by_side(learn_rows, work, jobs=jobs, steps=steps)
    document = {
        "world": plan.world,
        "size": plan.size,
        "seeds": [run.seed for run in runs],
        "logged_requests": plan.logs,
        "mined_requests": plan.settings.mining.requests,
        "test_requests": plan.test,
        "usual": _row([Ablation().apply(run) for run in runs], runs),
        "groups": {
            group: {name: _row([change.apply(run) for run in runs], runs) for name, change in GROUPS[group].items()}
            for group in groups
            if group != TRANSFER
        },
        "transfer": _transfer(runs) if TRANSFER in groups else {},
    }
    write_json(out / "ablations.json", document)
    return document


def learn_rows(work: AblationWork, say: Say) -> None:
    """Everything of a seed; what is done already takes no time."""
    run = work.run
    say(f"seed {run.seed}: {USUAL}")
    run.judge_folder, run.reference, run.answer(DEGRE, 1.0)
    for group in work.groups:
        for name, change in GROUPS.get(group, {}).items():
            say(f"seed {run.seed}: {name}")
            changed = change.apply(run)
            changed.reference, changed.answer(DEGRE, 1.0)
        if group == TRANSFER:
            for shape in TRANSFERS[run.plan.size]:
                say(f"seed {run.seed}: {shape[0]} candidates, {shape[1]} slots")
                transferred(run, *shape)


def print_ablations(document: dict[str, Any]) -> None:
    """The rows on stdout, group by group."""
    table = Table(title=f"ablations, true value over reference: {document['size']} {document['world']}")
    for column in ("group", "change", "value", "95 %", "less usual", "95 %", "judged", "believed", "calls", "seconds"):
        table.add_column(column, justify="left" if column in ("group", "change") else "right")
    rows = [("", USUAL, document["usual"])]
    rows += [(group, name, row) for group, of in document["groups"].items() for name, row in of.items()]
    for group, name, row in rows:
        less = row["minus_usual"]
        cells = [f"{row['mean']:.3f}", _range(row["interval"]), f"{less['mean']:+.3f}", _range(less["interval"])]
        cells += [f"{row['judged']:.3f}", f"{row['believed']:.3f}", f"{row['evaluator_calls']:,.0f}"]
        table.add_row(group, name, *cells, f"{row['seconds']:.0f}")
    Console(width=150).print(table)
    for name, of in document["transfer"].items():
        print(f"transfer to {name}: " + ", ".join(f"{method} {value:.3f}" for method, value in of.items()))


def _row(changed: Sequence[SeedRun], runs: Sequence[SeedRun]) -> dict[str, Any]:
    """One row: its value, beside it the usual settings on the same requests."""
    answers = [run.answer(DEGRE, 1.0) for run in changed]
    best = [np.load(run.reference / "best.npy") for run in changed]
    usual = [true_values(run, run.answer(DEGRE, 1.0).lists) / b for run, b in zip(runs, best, strict=True)]
    value = [true_values(run, a.lists) / b for run, a, b in zip(changed, answers, best, strict=True)]
    values = {"value": np.stack(value), "difference": np.stack(value) - np.stack(usual)}
    interval = paired_bootstrap(values)
    got, less = interval["value"], interval["difference"]
    return {
        "mean": got.mean,
        "interval": [got.low, got.high],
        "minus_usual": {"mean": less.mean, "interval": [less.low, less.high]},
        "by_seed": values["value"].mean(1).tolist(),
        "judged": mean(np.mean(judged(r, a.lists) / b) for r, a, b in zip(runs, answers, best, strict=True)),
        "believed": mean(np.mean(believed(r, a.lists) / b) for r, a, b in zip(changed, answers, best, strict=True)),
        "evaluator_calls": mean(a.train_calls for a in answers),
        "train_seconds": mean(a.train_seconds for a in answers),
        "evaluator_seconds": mean(seconds_of(run.evaluator_folder) for run in changed),
        "seconds": mean(
            a.train_seconds + seconds_of(run.evaluator_folder) for run, a in zip(changed, answers, strict=True)
        ),
    }


def _transfer(runs: Sequence[SeedRun]) -> dict[str, dict[str, float]]:
    """By shape of request: value over that shape's own reference, of the generator trained at the usual shape."""
    out = {}
    for candidates, slots in TRANSFERS[runs[0].plan.size]:
        found = [transferred(run, candidates, slots) for run in runs]
        out[f"{candidates} candidates, {slots} slots"] = {name: mean(f[name] for f in found) for name in found[0]}
    return out


def _range(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} … {interval[1]:.3f}"
