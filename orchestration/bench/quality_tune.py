"""`degre bench tune`: as many configurations for every method, chosen on validation requests by the judge, never by truth.

A method that learns from graded lists may spend a stated share of the calls that mining takes; `degre` mines
with narrower beams for it. The same seeds, logs and evaluator as `degre bench quality` in the same folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from degre_prod.artefact import digest, made_from, write_json
from degre_prod.baselines.calls import Calls
from degre_prod.baselines.click_to_top import decoded
from degre_prod.baselines.material import Ranker
from degre_prod.baselines.registry import METHODS, TRIALS
from degre_prod.errors import ConfigurationError
from degre_prod.evaluation.methods import input_order
from degre_prod.training.judge import judged_utility
from degre_prod.training.modules import load_generator
from orchestration.bench.quality_folders import seconds_of
from orchestration.bench.quality_jobs import Say, run_side_by_side
from orchestration.bench.quality_steps import DEGRE, Plan, SeedRun

# Changes to GeneratorConfig; the first is the default. As many as every baseline has.
DEGRE_TRIALS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"alpha": 2.0},
    {"tau_q": 0.1},
    {"tau_w": 0.3},
)
TUNABLE: Final = (*TRIALS, DEGRE)
_FORMAT = 2


@dataclass(frozen=True)
class TrialWork:
    """The trials of one seed: method, number of the configuration."""

    run: SeedRun
    trials: tuple[tuple[str, int], ...]
    share: float


def bench_tune(
    plan: Plan, seeds: Sequence[SeedRun], methods: Sequence[str], *, share: float, out: Path, jobs: int = 1
) -> dict[str, Any]:
    """Run every trial of the methods, write tune.json into `out` and return the document.

    Raises ConfigurationError for a method without trials.
    """
    unknown = [name for name in methods if name not in TUNABLE]
    if unknown or not methods:
        raise ConfigurationError(f"{', '.join(unknown) or 'nothing'} has no trials; there are {', '.join(TUNABLE)}")
    if not 0 < share <= 1:
        raise ConfigurationError(f"the share of the calls lies above 0 and at most at 1, got {share}")
    trials = tuple((method, number) for method in methods for number in range(len(configurations(method))))
    work = [TrialWork(run, trials, share) for run in seeds]
    run_side_by_side(run_trials, work, jobs=jobs, steps=len(trials) + 1)
    upstream = float(np.mean([_upstream(run) for run in seeds]))
    told: dict[str, list[dict[str, Any]]] = {
        method: [
            {
                "config": config,
                **{
                    name: float(np.mean([_trial(run, method, number, share)[name] for run in seeds]))
                    for name in ("judged", "evaluator_calls", "train_seconds")
                },
            }
            for number, config in enumerate(configurations(method))
        ]
        for method in methods
    }
    document = {
        "world": plan.world,
        "size": plan.size,
        "seeds": [run.seed for run in seeds],
        "share_of_the_calls": share,
        "validation_requests": len(seeds[0].split("validation")),
        "judged_upstream_order": upstream,
        "trials": told,
        "chosen": {method: int(np.argmax([trial["judged"] for trial in of])) for method, of in told.items()},
    }
    write_json(out / "tune.json", document)
    return document


def configurations(method: str) -> list[dict[str, Any]]:
    """A method's configurations as JSON values, its default first."""
    return [dict(c) for c in DEGRE_TRIALS] if method == DEGRE else [asdict(c) for c in TRIALS[method]]


def run_trials(work: TrialWork, say: Say) -> None:
    """Every trial of a seed; those done already take no time."""
    run = work.run
    say(f"seed {run.seed}: evaluator and judge")
    run.evaluator_folder, run.judge_folder  # noqa: B018 - made before the clock of a trial starts
    for method, number in work.trials:
        say(f"seed {run.seed}: {method}, configuration {number + 1}")
        _trial(run, method, number, work.share)


def print_trials(document: dict[str, Any]) -> None:
    """The trials on stdout; the chosen ones are marked."""
    table = Table(title=f"judged clicks on validation requests: {document['size']} {document['world']}")
    for column in ("method", "configuration", "judged", "calls", "seconds", "chosen"):
        table.add_column(column, justify="right" if column in ("judged", "calls", "seconds") else "left")
    for method, trials in document["trials"].items():
        for number, trial in enumerate(trials):
            chosen = "←" if document["chosen"][method] == number else ""
            cells = (f"{trial['judged']:.4f}", f"{trial['evaluator_calls']:,.0f}", f"{trial['train_seconds']:.1f}")
            table.add_row(method, told_config(trial["config"]), *cells, chosen)
    Console(width=150).print(table)


def told_config(config: dict[str, Any]) -> str:
    """`learning_rate .003, group 16`, or `default`."""
    return ", ".join(f"{name} {value}" for name, value in config.items()) or "default"


def _trial(run: SeedRun, method: str, number: int, share: float) -> dict[str, float]:
    config = configurations(method)[number]
    settings = {name: getattr(run.settings, name).model_dump() for name in ("mining", "generator")}
    inputs = [made_from(run.evaluator_folder), made_from(run.judge_folder), settings]
    key = digest("trial", _FORMAT, method, config, share, *inputs)
    folder = run.made(f"trials/{method}", key, lambda place: _run_trial(run, method, number, share, place))
    return dict(json.loads((folder / "trial.json").read_text()))


def _run_trial(run: SeedRun, method: str, number: int, share: float, place: Path) -> None:
    calls, started = Calls(), time.process_time()
    rank: Ranker
    if method == DEGRE:
        generator = run.plan.settings.generator.model_copy(update=DEGRE_TRIALS[number])
        settings = run.plan.settings.model_copy(update={"generator": generator})
        own = replace(run, plan=replace(run.plan, settings=settings))
        learnt = own.generator(share)
        rank = partial(decoded, load_generator(learnt), length=own.evaluator.spec.layout.list_length)
        calls.add(own.spent(share))
        seconds = seconds_of(learnt) + seconds_of(own.mined(share))
    else:
        rank = METHODS[method](run.material(share), calls, TRIALS[method][number])
        seconds = time.process_time() - started
    spent = calls.count
    validation = run.split("validation")
    judged = float(judged_utility(run.judge, validation, rank(validation)).mean())
    write_json(place / "trial.json", {"judged": judged, "evaluator_calls": spent, "train_seconds": seconds})


def _upstream(run: SeedRun) -> float:
    validation = run.split("validation")
    return float(
        judged_utility(run.judge, validation, input_order(validation, run.judge.spec.layout.list_length)).mean()
    )
