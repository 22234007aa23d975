"""How often do off-policy intervals hold the truth? Fresh simulated logs, over and over, against a world whose truth is known.

Two questions, each with list and slot level estimates:
- `softer`: logged by Plackett–Luce at temperature .5; what would lists drawn at .8 earn?
- `one_swap`: logged by exploration around one list a request, as the service does; how much more than that list would
  another earn that has two neighbouring items swapped where their scores are close? (a difference, request by request)
- `far`: the same for a list that differs in many slots. Exploration hardly ever shows it: the estimates must be called
  not estimable, and what their intervals hold is printed to show why.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from degre_prod.artefact import write_json
from degre_prod.evaluation.explored import explored_chances, reach
from degre_prod.evaluation.off_policy import (
    Estimate,
    difference,
    list_dr,
    list_ips,
    list_snips,
    plackett_luce,
    slot_dr,
    slot_ips,
    slot_snips,
)
from degre_prod.worlds.simulate import Log, draw_log, draw_plackett_luce, react
from degre_prod.worlds.spec import LOGGING_TEMPERATURE
from degre_prod.worlds.truth import World, make_world
from serving.exploration import explore

TARGET_TEMPERATURE, SHARE, CLOSE, NOISE = 0.8, 0.2, 0.3, 0.4
EXPLORED = 8  # times as many requests where few slots are explored
LOW, HIGH = 0.90, 0.99  # share of intervals that must hold the truth
TRUTH_REQUESTS = 400_000
ESTIMATORS = tuple(f"{level} {name}" for level in ("list", "slot") for name in ("IPS", "SNIPS", "DR"))
ESTIMANDS = {
    "softer": "clicks of a list drawn by Plackett–Luce on the upstream score at temperature 0.8",
    "one_swap": "clicks of the upstream list with its closest neighbours swapped, less those of the upstream list",
    "far": "clicks of the list by the upstream score with noise, less those of the upstream list",
}


@dataclass(frozen=True)
class Study:
    """A question: what it asks for, the truth, and one log's estimates by name with its effective samples to be expected
    (None where only the weights tell)."""

    name: str
    truth: float
    estimate: Callable[[int], tuple[dict[str, Estimate], float | None]]


def bench_off_policy(
    repetitions: int, requests: int, out: Path, *, world: str = "mixed", seed: int = 0, min_effective: float = 200.0
) -> dict[str, Any]:
    """Coverage of the 95 % intervals by question and estimator; writes off_policy.json, .svg and .png into `out`.

    `min_effective`: effective samples below which an estimate is not estimable (`gates.min_effective_samples`).
    """
    from rich.console import Console
    from rich.progress import Progress

    from orchestration.bench.off_policy_plot import draw_coverage

    started = time.perf_counter()
    market = make_world(world, "small", seed)
    studies = (softer(market, requests), *(planned(market, name, EXPLORED * requests) for name in ("one_swap", "far")))
    found = {}
    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        for study in studies:
            task = bar.add_task(study.name, total=repetitions)
            runs = []
            for repetition in range(repetitions):
                runs.append(study.estimate(repetition))
                bar.advance(task)
            found[study.name] = _summary(study, runs, min_effective)
    rows = [r for s in found.values() for r in s["estimators"].values() if r["estimable"] == 1.0]
    document = {
        "world": f"{world}-small",
        "repetitions": repetitions,
        "studies": found,
        "inside_90_99": all(LOW <= r["coverage"] <= HIGH for r in rows),
        "estimable": len(rows),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(out / "off_policy.json", document)
    draw_coverage(document, out / "off_policy")
    return document


def softer(world: World, requests: int) -> Study:
    """Another temperature of the same Plackett–Luce policy."""
    parts = []
    rng = np.random.default_rng([world.seed, 90])
    for _ in range(TRUTH_REQUESTS // 20_000):
        log = draw_log(world, 20_000, rng)
        drawn, _ = draw_plackett_luce(log.upstream_BC / TARGET_TEMPERATURE, world.spec.list_length, rng)
        parts.append(world.true_values(log.user_ids_B, log.candidate_ids_BC, drawn[:, None])[:, 0])

    def estimate(repetition: int) -> tuple[dict[str, Estimate], float | None]:
        log = draw_log(world, requests, np.random.default_rng([world.seed, 91, repetition]))
        logits = log.upstream_BC.astype(np.float64)
        target = plackett_luce(logits / TARGET_TEMPERATURE, log.shown_BL)
        logging = plackett_luce(logits / LOGGING_TEMPERATURE, log.shown_BL)
        return _all(log.click_BL.astype(float), target, logging, *_own_chances(log)), None

    return Study("softer", float(np.concatenate(parts).mean()), estimate)


def planned(world: World, name: str, requests: int) -> Study:
    """Another list than the one that exploration goes around."""
    log = draw_log(world, TRUTH_REQUESTS, np.random.default_rng([world.seed, 92]))
    plans = _plans(log, name, world.spec.list_length, np.random.default_rng([world.seed, 93]))
    values = world.true_values(log.user_ids_B, log.candidate_ids_BC, np.stack(plans, axis=1))

    def estimate(repetition: int) -> tuple[dict[str, Estimate], float | None]:
        rng = np.random.default_rng([world.seed, 94, repetition])
        log = draw_log(world, requests, rng)
        plan, wanted = _plans(log, name, world.spec.list_length, rng)
        shown, logging = _explored(plan, log.candidate_ids_BC.shape[1], random.Random(repetition))
        ids = np.take_along_axis(log.candidate_ids_BC, shown, axis=1)
        clicks = react(world, log.user_ids_B, ids, rng)[0].astype(float)
        both = []
        for of in (wanted, plan):
            togo = _slot_model(log, of)[:, ::-1].cumsum(1)[:, ::-1]
            both.append(_all(clicks, (of == shown).astype(float), logging, togo, togo))
        counts, shares = np.full(requests, log.candidate_ids_BC.shape[1]), np.full(requests, SHARE)
        chances = [explored_chances(plan, of, counts, shares).cumprod(1) for of in (wanted, plan)]
        reached = reach(chances[0], chances[1], np.logical_or.accumulate(wanted != plan, axis=1))
        return {e: difference(both[0][e], both[1][e]) for e in ESTIMATORS}, reached

    return Study(name, float((values[:, 1] - values[:, 0]).mean()), estimate)


def _all(
    reward: np.ndarray, target: np.ndarray, logging: np.ndarray, model: np.ndarray, under_target: np.ndarray
) -> dict[str, Estimate]:
    """The six estimates; models by slot, of which a list's is the first slot's."""
    whole = (reward.sum(1), target.prod(1), logging.prod(1))
    return {
        "list IPS": list_ips(*whole),
        "list SNIPS": list_snips(*whole),
        "list DR": list_dr(*whole, model[:, 0], under_target[:, 0]),
        "slot IPS": slot_ips(reward, target, logging),
        "slot SNIPS": slot_snips(reward, target, logging),
        "slot DR": slot_dr(reward, target, logging, model, under_target),
    }


def _own_chances(log: Log) -> tuple[np.ndarray, np.ndarray]:
    """A crude model that knows of each slot its own item's chance by the upstream score: of the logged item, and mean over
    the target's choice given the items before."""
    own = 1 / (1 + np.exp(-log.upstream_BC.astype(np.float64)))
    weight = np.exp(log.upstream_BC.astype(np.float64) / TARGET_TEMPERATURE)
    mean: np.ndarray = np.empty(log.shown_BL.shape)
    for t in range(mean.shape[1]):
        mean[:, t] = (weight * own).sum(1) / weight.sum(1)
        np.put_along_axis(weight, log.shown_BL[:, t : t + 1], 0.0, axis=1)
    return np.take_along_axis(own, log.shown_BL, axis=1), mean


def _slot_model(log: Log, lists_RL: np.ndarray) -> np.ndarray:
    own = 1 / (1 + np.exp(-np.take_along_axis(log.upstream_BC.astype(np.float64), lists_RL, axis=1)))
    return own * 0.9 ** np.arange(lists_RL.shape[1])


def _plans(log: Log, name: str, L: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The upstream list, which exploration goes around, and the list that is asked about."""
    R, C = log.upstream_BC.shape
    line = np.tile(np.arange(C), (R, 1))
    if name == "far":
        noisy = log.upstream_BC + NOISE * rng.normal(size=(R, C))
        return line[:, :L], np.argsort(-noisy, axis=1, kind="stable")[:, :L]
    gaps = log.upstream_BC[:, :L] - log.upstream_BC[:, 1 : L + 1]
    at = gaps.argmin(1)
    rows = np.flatnonzero(gaps.min(1) < CLOSE)
    wanted = line.copy()
    wanted[rows, at[rows]], wanted[rows, at[rows] + 1] = line[rows, at[rows] + 1], line[rows, at[rows]]
    return line[:, :L], wanted[:, :L]


def _explored(plan_RL: np.ndarray, candidates: int, chance: random.Random) -> tuple[np.ndarray, np.ndarray]:
    found = [explore(plan, candidates, SHARE, chance) for plan in plan_RL.tolist()]
    return np.array([e.order for e in found]), np.array([e.propensity for e in found])


def _summary(
    study: Study, runs: list[tuple[dict[str, Estimate], float | None]], min_effective: float
) -> dict[str, Any]:
    rows = {}
    for name in ESTIMATORS:
        estimates = [estimates[name] for estimates, _ in runs]
        samples = np.array(
            [
                e.effective_samples if r is None else min(e.effective_samples, r)
                for e, (_, r) in zip(estimates, runs, strict=True)
            ]
        )
        values = np.array([e.value for e in estimates])
        rows[name] = {
            "coverage": float(np.mean([e.low <= study.truth <= e.high for e in estimates])),
            "bias": float(values.mean() - study.truth),
            "standard_deviation": float(values.std(ddof=1)),
            "width": float(np.mean([e.high - e.low for e in estimates])),
            "effective_samples": float(np.median(samples)),
            "estimable": float(np.median(samples) >= min_effective),
        }
    return {"estimand": ESTIMANDS[study.name], "truth": study.truth, "estimators": rows}


def print_table(document: dict[str, Any]) -> None:
    """One table for all questions."""
    from rich.console import Console
    from rich.table import Table

    columns = ("question", "estimator", "held", "bias", "deviation", "width", "samples", "")
    table = Table(*columns)
    for name, study in document["studies"].items():
        for estimator, row in study["estimators"].items():
            numbers = [f"{row[k]:.4f}" for k in ("bias", "standard_deviation", "width")]
            told = "" if row["estimable"] else "not estimable"
            table.add_row(name, estimator, f"{row['coverage']:.1%}", *numbers, f"{row['effective_samples']:.0f}", told)
    Console().print(table)
