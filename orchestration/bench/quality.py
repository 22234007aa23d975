"""`degre bench quality`: the true value of every method's lists in a simulated world, and what they cost.

Features are joined by id (they never change in a world); everything else is the project's own path, in one process and
one thread a seed. A baseline that learns from graded lists may spend as many evaluator calls as mining did. Seconds are CPU
seconds of that thread, so that they do not depend on who else uses the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from degre_prod.artefact import write_json
from degre_prod.baselines.registry import METHODS, TEACHERS
from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError
from degre_prod.training.memory import keep_freed_memory
from degre_prod.worlds.spec import training_requests, world_spec
from orchestration.bench.quality_jobs import Say, run_side_by_side
from orchestration.bench.quality_plot import draw_curves
from orchestration.bench.quality_steps import DEGRE, Plan, SeedRun, is_ours, is_priced
from orchestration.bench.quality_summary import Point, summarise
from orchestration.bench.quality_variants import VARIANTS

MINED = {"small": 8000, "large": 3000}
ALL = (*METHODS, *VARIANTS, DEGRE)


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
    jobs: int = 1,
) -> dict[str, Any]:
    """Measure, write quality.json, quality.svg and quality.png into `out`, and return the document.

    `shares`: of the evaluator calls that mining all requests takes, one point of the curves each; the table shows the largest.
    `jobs` seeds run side by side. Raises ConfigurationError for an unknown world, size or method.
    """
    unknown = [name for name in methods if name not in (*METHODS, *VARIANTS, DEGRE)]
    if unknown or not methods:
        raise ConfigurationError(f"no method {', '.join(unknown) or 'named'}; there are {', '.join(ALL)}")
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ConfigurationError(f"shares lie above 0 and at most at 1, got {list(shares)}")
    plan = make_plan(world, size, settings=settings, logs=logs, mined=mined, test=test)
    wanted = list(dict.fromkeys([*methods, DEGRE, *TEACHERS]))  # recovery and optimism need these three
    points = [(m, s) for m in wanted for s in (sorted(set(shares)) if is_priced(m) else [max(shares)])]
    runs = make_runs(plan, seeds, out)
    work = [SeedWork(run, tuple(points)) for run in runs]
    run_side_by_side(learn_everything, work, jobs=jobs, steps=len(points) + len(_BEFORE))
    document = summarise(runs, {point: [run.answer(*point) for run in runs] for point in points}, max(shares))
    write_json(out / "quality.json", document)
    draw_curves(document, out / "quality")
    return document


def make_plan(world: str, size: str, *, settings: Settings, logs: int | None, mined: int | None, test: int) -> Plan:
    """The plan with the size's usual counts where none are given; raises ConfigurationError for an unknown world or size."""
    world_spec(world, size)
    mining = settings.mining.model_copy(update={"requests": mined or MINED[size]})
    return Plan(world, size, logs or training_requests(size), test, settings.model_copy(update={"mining": mining}))


def make_runs(plan: Plan, seeds: int, out: Path) -> list[SeedRun]:
    """Seeds 0, 1, … of a plan."""
    torch.set_num_threads(1)
    keep_freed_memory()  # for every method alike
    return [SeedRun(out / f"seed-{seed}", plan, seed) for seed in range(seeds)]


@dataclass(frozen=True)
class SeedWork:
    """All that one seed has to learn."""

    run: SeedRun
    points: tuple[Point, ...]


_BEFORE = ("data", "evaluator", "judge", "reference", "diagnostics")


def learn_everything(work: SeedWork, say: Say) -> None:
    """Every step of a seed; those done already take no time."""
    run = work.run
    makes: tuple[Callable[[], object], ...] = (
        lambda: run.encoded,
        lambda: run.evaluator_folder,
        lambda: run.judge_folder,
        lambda: run.reference,
        lambda: run.diagnostics,
    )
    for label, make in zip(_BEFORE, makes, strict=True):
        say(f"seed {run.seed}: {label}")
        make()
    for method, share in work.points:
        say(f"seed {run.seed}: {method}" + (f", {share:g} of the calls" if share < 1 else ""))
        run.answer(method, share)
        if is_ours(method):
            run.variant(method).diagnostics  # noqa: B018 - made once, in this process


def parse_shares(text: str) -> list[float]:
    """`0.1,0.3,1` as numbers; raises ConfigurationError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigurationError(f"shares are numbers with commas between, such as 0.1,0.3,1; got {text!r}") from None
