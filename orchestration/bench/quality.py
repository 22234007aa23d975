"""`degre bench quality`: the true value of every method's lists in a simulated world, and what they cost.

Features are joined by id (they never change in a world); everything else is the project's own path, in one process on one
thread. A baseline that learns from graded lists may spend as many evaluator calls as mining did.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from degre_prod.artefact import write_json, write_text
from degre_prod.baselines.registry import GRADED, METHODS, TEACHERS
from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError
from degre_prod.evaluation.diagnostics import diagnose
from degre_prod.evaluation.methods import believed_utility
from degre_prod.evaluation.ranking import better_shares, hit_rate, logged_ndcg, paired_bootstrap, regret
from degre_prod.worlds.spec import training_requests, world_spec
from orchestration.bench.quality_plot import value_against_price
from orchestration.bench.quality_steps import DEGRE, Answer, Plan, SeedRun, seconds_of

MINED = {"small": 8000, "large": 3000}
ALL = (*METHODS, DEGRE)
_PLANNING = 0.02  # where the beam gains less over greedy there is no planning to recover


def bench_quality(
    world: str,
    size: str,
    seeds: int,
    *,
    methods: Sequence[str],
    shares: Sequence[float],
    settings: Settings,
    logs: int | None,
    mined: int | None,
    test: int,
    out: Path,
) -> dict[str, Any]:
    """Measure, write quality.json and quality.svg into `out`, and return the document.

    `shares`: of the requests to mine and of the call budget, one point of the curves each; the table shows the largest.
    Raises ConfigurationError for an unknown world, size or method.
    """
    world_spec(world, size)
    unknown = [name for name in methods if name not in ALL]
    if unknown or not methods:
        raise ConfigurationError(f"no method {', '.join(unknown) or 'named'}; there are {', '.join(ALL)}")
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ConfigurationError(f"shares lie above 0 and at most at 1, got {list(shares)}")
    torch.set_num_threads(1)
    mining = settings.mining.model_copy(update={"requests": mined or MINED[size]})
    settings = settings.model_copy(update={"mining": mining})
    plan = Plan(world, size, logs or training_requests(size), test, settings)
    runs = [SeedRun(out / f"seed-{seed}", plan, seed) for seed in range(seeds)]
    wanted = list(dict.fromkeys([*methods, DEGRE, *TEACHERS]))  # recovery and optimism need these three
    points = [(m, s) for m in wanted for s in (sorted(set(shares)) if m == DEGRE or m in GRADED else [max(shares)])]
    answers: dict[tuple[str, float], list[Answer]] = {point: [] for point in points}
    with _Steps(len(runs) * (len(points) + 3)) as step:
        for run in runs:
            for label, work in (
                ("data", run.prepare),
                ("evaluator", run.train_evaluator),
                ("reference", run.find_reference),
            ):
                step(f"seed {run.seed}: {label}")
                work()
            for method, share in points:
                step(f"seed {run.seed}: {method}" + (f", {share:g} of the calls" if share < 1 else ""))
                answers[method, share].append(run.answer(method, share))
    document = summarise(runs, answers, max(shares))
    write_json(out / "quality.json", document)
    write_text(out / "quality.svg", value_against_price(document))
    return document


def summarise(runs: Sequence[SeedRun], answers: dict[tuple[str, float], list[Answer]], share: float) -> dict[str, Any]:
    """The document from every method's answers; values are true clicks over the reference's, a mean of shares."""
    plan = runs[0].plan
    best = [np.load(run.folder / "reference" / "best.npy") for run in runs]
    values = {
        point: np.stack([_true_values(run, a.lists) / b for run, a, b in zip(runs, of, best, strict=True)])
        for point, of in answers.items()
    }
    table = {method: value for (method, s), value in values.items() if s == share}
    interval = paired_bootstrap({**table, **{f"{m} - {DEGRE}": v - table[DEGRE] for m, v in table.items()}})
    methods = {}
    for method, value in table.items():
        of = answers[method, share]
        difference = interval[f"{method} - {DEGRE}"]
        methods[method] = {
            "mean": interval[method].mean,
            "interval": [interval[method].low, interval[method].high],
            "minus_degre": {"mean": difference.mean, "interval": [difference.low, difference.high]},
            "by_seed": value.mean(1).tolist(),
            "evaluator_calls": _mean(a.train_calls for a in of),
            "train_seconds": _mean(a.train_seconds for a in of),
            "calls_per_answer": _mean(a.answer_calls / plan.test for a in of),
            "believed": _mean(np.mean(_believed(run, a.lists) / b) for run, a, b in zip(runs, of, best, strict=True)),
            "logged_ndcg": _mean(
                np.nanmean(logged_ndcg(a.lists, _clicked(run))) for run, a in zip(runs, of, strict=True)
            ),
            "teacher": method in TEACHERS,
            **(_among_all(runs, value, best) if plan.size == "small" else {}),
        }
    greedy, beam, ours = (methods[m]["mean"] for m in ("greedy_evaluator", "beam_evaluator", DEGRE))
    diagnostics = [asdict(diagnose(r.evaluator, r.split("test"), r.truth, *r.test_ids)) for r in runs]
    return {
        "world": plan.world,
        "size": plan.size,
        "seeds": [run.seed for run in runs],
        "test_requests": plan.test,
        "logged_requests": plan.logs,
        "mined_requests": plan.settings.mining.requests,
        "budget_calls": int(_mean(run.mining_calls for run in runs) * share),
        "reference": "optimum" if plan.size == "small" else "best of wide true-value beams and local search",
        "reference_clicks": _mean(np.mean(b) for b in best),
        "features": "joined by id",
        "methods": methods,
        "recovery": (ours - greedy) / (beam - greedy) if beam - greedy > _PLANNING else None,
        "optimism": methods["beam_evaluator"]["believed"] - beam,
        "evaluator": {
            **{name: _mean(d[name] for d in diagnostics) for name in diagnostics[0]},
            "train_seconds": _mean(seconds_of(run.folder / "evaluator") for run in runs),
        },
        "curves": _curves(values, answers),
    }


def parse_shares(text: str) -> list[float]:
    """`0.1,0.3,1` as numbers; raises ConfigurationError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigurationError(f"shares are numbers with commas between, such as 0.1,0.3,1; got {text!r}") from None


def print_table(document: dict[str, Any]) -> None:
    """The document's methods on stdout, best first."""
    table = Table(title=f"true value over reference: {document['size']} {document['world']}, seeds {document['seeds']}")
    for column in ("method", "value", "95 %", "less degre", "95 %", "calls", "seconds", "believed"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, m in sorted(document["methods"].items(), key=lambda item: -item[1]["mean"]):
        less = m["minus_degre"]
        cells = (f"{m['mean']:.3f}", _range(m["interval"]), f"{less['mean']:+.3f}", _range(less["interval"]))
        price = (f"{m['evaluator_calls']:,.0f}", f"{m['train_seconds']:.1f}", f"{m['believed']:.3f}")
        table.add_row(name + (" (teacher)" if m["teacher"] else ""), *cells, *price)
    Console(width=120).print(table)


def _range(interval: list[float]) -> str:
    return f"{interval[0]:.3f} … {interval[1]:.3f}"


def _curves(values: dict[tuple[str, float], np.ndarray], answers: dict[tuple[str, float], list[Answer]]) -> Any:
    """By method: value, calls and seconds at every share."""
    out: dict[str, list[dict[str, float]]] = {}
    for (method, share), value in values.items():
        of = answers[method, share]
        point = {
            "share": share,
            "mean": float(value.mean()),
            "evaluator_calls": _mean(a.train_calls for a in of),
            "train_seconds": _mean(a.train_seconds for a in of),
        }
        out.setdefault(method, []).append(point)
    return out


def _true_values(run: SeedRun, lists: np.ndarray) -> np.ndarray:
    return run.truth.true_values(*run.test_ids, lists[:, None])[:, 0]


def _believed(run: SeedRun, lists: np.ndarray) -> np.ndarray:
    """In expected clicks: a world has one objective of weight 1."""
    return believed_utility(run.evaluator, run.split("test"), lists) * run.evaluator.spec.mean_utility


def _clicked(run: SeedRun) -> np.ndarray:
    """Logged clicks by candidate, (R, C)."""
    arrays = run.split("test").arrays
    out = np.zeros(arrays["mask"].shape)
    np.put_along_axis(out, np.asarray(arrays["shown"]), arrays["feedback"][:, 0], axis=1)
    return out


def _among_all(runs: Sequence[SeedRun], shares_SR: np.ndarray, best: list[np.ndarray]) -> dict[str, float]:
    every = [np.load(run.folder / "reference" / "all.npy", mmap_mode="r") for run in runs]
    better = np.concatenate([better_shares(s * b, e) for s, b, e in zip(shares_SR, best, every, strict=True)])
    return {
        "hit_rate_1_percent": hit_rate(better, 0.01),
        "hit_rate_10_percent": hit_rate(better, 0.10),
        "regret": regret(shares_SR.ravel(), np.ones(shares_SR.size)),
    }


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


class _Steps:
    """A bar on stderr; calling it names the step that begins."""

    def __init__(self, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
        self._task = self._bar.add_task("quality", total=total)
        self._begun = 0

    def __call__(self, label: str) -> None:
        self._bar.update(self._task, completed=self._begun, description=label)
        self._begun += 1

    def __enter__(self) -> _Steps:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
