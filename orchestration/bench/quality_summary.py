"""The quality benchmark's document from what its seeds learnt, and the table on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from degre_prod.baselines.registry import TEACHERS
from degre_prod.evaluation.methods import believed_utility
from degre_prod.evaluation.ranking import better_shares, hit_rate, logged_ndcg, paired_bootstrap, regret
from degre_prod.training.judge import judged_utility
from orchestration.bench.quality_folders import seconds_of
from orchestration.bench.quality_steps import DEGRE, TRUE_BEAM, Answer, SeedRun, is_ours

Point = tuple[str, float]  # method, share of the calls
PLANNING = 0.02  # where the beam gains less over greedy there is no planning to recover
TELLING_GAP = 0.05  # true differences above this one the judge must see


def summarise(runs: Sequence[SeedRun], answers: dict[Point, list[Answer]], share: float) -> dict[str, Any]:
    """The document from every method's answers; values are clicks over the reference's true ones, a mean of shares."""
    plan = runs[0].plan
    best = [np.load(run.reference / "best.npy") for run in runs]
    values = {
        point: np.stack([true_values(run, a.lists) / b for run, a, b in zip(runs, of, best, strict=True)])
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
            "judged": mean(np.mean(judged(run, a.lists) / b) for run, a, b in zip(runs, of, best, strict=True)),
            "believed": mean(
                np.mean(believed(run.variant(method), a.lists) / b) for run, a, b in zip(runs, of, best, strict=True)
            ),
            "evaluator_calls": mean(a.train_calls for a in of),
            "train_seconds": mean(a.train_seconds for a in of),
            "calls_per_answer": mean(a.answer_calls / plan.test for a in of),
            "answer_ms": mean(1000 * a.answer_seconds / plan.test for a in of),
            "logged_ndcg": mean(
                np.nanmean(logged_ndcg(a.lists, _clicked(run))) for run, a in zip(runs, of, strict=True)
            ),
            "teacher": method in TEACHERS,
            **(_among_all(runs, value, best) if plan.size == "small" else {}),
        }
    greedy, beam, ours = (methods[m]["mean"] for m in ("greedy_evaluator", "beam_evaluator", DEGRE))
    return {
        "world": plan.world,
        "size": plan.size,
        "seeds": [run.seed for run in runs],
        "test_requests": plan.test,
        "logged_requests": plan.logs,
        "mined_requests": plan.settings.mining.requests,
        "budget_calls": int(mean(run.mining_calls for run in runs) * share),
        "reference": "optimum" if plan.size == "small" else "best of wide true-value beams and local search",
        "reference_clicks": mean(np.mean(b) for b in best),
        "true_beam": _true_beam(runs, best),
        "features": "joined by id",
        "methods": methods,
        "recovery": (ours - greedy) / (beam - greedy) if beam - greedy > PLANNING else None,
        "optimism": methods["beam_evaluator"]["believed"] - beam,
        "evaluator": evaluator_summary(runs),
        "variants": {m: evaluator_summary([r.variant(m) for r in runs]) for m in table if is_ours(m) and m != DEGRE},
        "judge_agreement": judge_agreement(methods),
        "judge_seconds": mean(seconds_of(run.judge_folder) for run in runs),
        "curves": _curves(values, answers),
    }


def judge_agreement(methods: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Pairs of the table whose true gap exceeds TELLING_GAP, and the share of them that the judge orders alike."""
    agreed = [
        (one["judged"] > other["judged"]) == (one["mean"] > other["mean"])
        for one, other in combinations(methods.values(), 2)
        if abs(one["mean"] - other["mean"]) > TELLING_GAP
    ]
    return {"share": float(np.mean(agreed)) if agreed else None, "pairs": len(agreed), "true_gap_above": TELLING_GAP}


def evaluator_summary(runs: Sequence[SeedRun]) -> dict[str, Any]:
    """Diagnostics, a mean over seeds; `rmse_over_sd` is over the standard deviation of all random lists."""
    told = average([run.diagnostics for run in runs])
    return {
        **told,
        "rmse_over_sd": told["rmse_over_pooled_sd"],
        "rmse_over_sd_within": told["rmse_over_sd"],
        "prefix_states": [run.evaluator.spec.prefix_state for run in runs],
        "train_seconds": mean(seconds_of(run.evaluator_folder) for run in runs),
    }


def average(of: Sequence[Any]) -> Any:
    """Element-wise mean of equally built documents; what isn't a number is kept where all agree, else listed."""
    first = of[0]
    if isinstance(first, dict):
        return {name: average([one[name] for one in of]) for name in first}
    if isinstance(first, list) and all(len(one) == len(first) for one in of):
        return [average(list(column)) for column in zip(*of, strict=True)]
    if isinstance(first, int | float) and not isinstance(first, bool):
        return mean(of)
    return first if all(one == first for one in of) else list(of)


def true_values(run: SeedRun, lists: np.ndarray) -> np.ndarray:
    """True clicks of one list a test request, (R,)."""
    return run.truth.true_values(*run.test_ids, lists[:, None])[:, 0]


def believed(run: SeedRun, lists: np.ndarray) -> np.ndarray:
    """Clicks that the evaluator expects, (R,): a world has one objective of weight 1."""
    return believed_utility(run.evaluator, run.split("test"), lists) * run.evaluator.spec.mean_utility


def judged(run: SeedRun, lists: np.ndarray) -> np.ndarray:
    """Clicks that the judge expects, (R,)."""
    return judged_utility(run.judge, run.split("test"), lists)


def mean(values: Iterable[Any]) -> float:
    """Of numbers."""
    return float(np.mean(list(values)))


def print_table(document: dict[str, Any]) -> None:
    """The document's methods on stdout, best first."""
    table = Table(title=f"true value over reference: {document['size']} {document['world']}, seeds {document['seeds']}")
    small = document["size"] == "small"
    within = ("HR@1 %", "HR@10 %", "regret") if small else ()
    for column in ("method", "value", "95 %", "less degre", "95 %", "judged", "believed", *within, "calls", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, m in sorted(document["methods"].items(), key=lambda item: -item[1]["mean"]):
        less = m["minus_degre"]
        cells = [f"{m['mean']:.3f}", _range(m["interval"]), f"{less['mean']:+.3f}", _range(less["interval"])]
        cells += [f"{m['judged']:.3f}", f"{m['believed']:.3f}"]
        if small:
            cells += [f"{m[k]:.3f}" for k in ("hit_rate_1_percent", "hit_rate_10_percent", "regret")]
        cells += [f"{m['evaluator_calls']:,.0f}", f"{m['train_seconds']:.1f}"]
        table.add_row(name + (" (teacher)" if m["teacher"] else ""), *cells)
    Console(width=150).print(table)


def _range(interval: list[float]) -> str:
    return f"{interval[0]:.3f} … {interval[1]:.3f}"


def _true_beam(runs: Sequence[SeedRun], best: list[np.ndarray]) -> dict[str, Any]:
    """What a beam on true prefix values reaches: planning without a value to go (METHOD §6)."""
    shares = [np.load(run.reference / "true_beam.npy") / b for run, b in zip(runs, best, strict=True)]
    return {"width": TRUE_BEAM[runs[0].plan.size], "mean": mean(np.mean(s) for s in shares)}


def _curves(values: dict[Point, np.ndarray], answers: dict[Point, list[Answer]]) -> dict[str, list[dict[str, float]]]:
    """By method: value, calls and seconds at every share."""
    out: dict[str, list[dict[str, float]]] = {}
    for (method, share), value in values.items():
        of = answers[method, share]
        point = {
            "share": share,
            "mean": float(value.mean()),
            "evaluator_calls": mean(a.train_calls for a in of),
            "train_seconds": mean(a.train_seconds for a in of),
        }
        out.setdefault(method, []).append(point)
    return out


def _clicked(run: SeedRun) -> np.ndarray:
    """Logged clicks by candidate, (R, C)."""
    arrays = run.split("test").arrays
    out = np.zeros(arrays["mask"].shape)
    np.put_along_axis(out, np.asarray(arrays["shown"]), arrays["feedback"][:, 0], axis=1)
    return out


def _among_all(runs: Sequence[SeedRun], shares_SR: np.ndarray, best: list[np.ndarray]) -> dict[str, float]:
    every = [np.load(run.reference / "all.npy", mmap_mode="r") for run in runs]
    better = np.concatenate([better_shares(s * b, e) for s, b, e in zip(shares_SR, best, every, strict=True)])
    return {
        "hit_rate_1_percent": hit_rate(better, 0.01),
        "hit_rate_10_percent": hit_rate(better, 0.10),
        "regret": regret(shares_SR.ravel(), np.ones(shares_SR.size)),
    }
