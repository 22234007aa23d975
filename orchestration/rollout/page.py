"""The page of an experiment, running or the last one: tables and plots over time in one HTML file that loads nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import redis

from degre_prod.artefact import write_text
from degre_prod.errors import MismatchError
from orchestration.report.experiment_plot import Look, effect_over_time
from orchestration.report.page import Picture, picture, rendered
from orchestration.rollout.controller import ended
from serving.experiment import Experiment
from serving.looks import Point, read_look, read_points
from serving.plan_store import read_history

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def write_page(client: redis.Redis, path: Path) -> Path:
    """Write the page of the running or the last experiment aside, rename it to `path`, and return `path`.

    Raises MismatchError when there was no experiment yet, PlanError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(client))
    return path


def render(client: redis.Redis) -> str:
    """The page as text; every value is escaped."""
    history = read_history(client)
    mine = [p for p in history if p.experiment is not None]
    if not mine or mine[-1].experiment is None:
        raise MismatchError("there was no experiment yet; `degre rollout start` begins one")
    experiment = mine[-1].experiment
    look, points = read_look(client, experiment.id), read_points(client, experiment.id)
    return rendered(
        _TEMPLATE,
        experiment=experiment,
        outcome=ended(client, experiment.id),
        look=look,
        arm=look["results"]["arms"][0] if look and look["results"] else None,
        pictures=_pictures(experiment, points),
        changes=[p.change for p in history if p.change is not None and p.change.experiment == experiment.id],
    )


def _pictures(experiment: Experiment, points: Sequence[Point]) -> list[Picture]:
    name, least = experiment.primary.objective, experiment.primary.smallest_effect
    band = "Band: always-valid interval, each stage on its own data."
    found = [
        _picture(points, "primary", f"effect on {name}", least, f"{band} Dotted: the smallest effect worth having.")
    ]
    found += [
        _picture(
            points, g.metric, f"{g.metric}: challenger less champion", g.max_rise, f"{band} Dotted: what is allowed."
        )
        for g in experiment.guardrails
    ]
    if any("judge" in point.metrics for point in points):
        told = f"{band} Lists made in shadow, one request a user, as an independent judge values them."
        found.append(_picture(points, "judge", "judged value of a list", least, told))
    return found


def _picture(points: Sequence[Point], metric: str, what: str, bound: float, caption: str) -> Picture:
    stages: dict[str, list[Look]] = {}
    for point in points:
        if metric in point.metrics:
            estimate, low, high = (math.nan if v is None else v for v in point.metrics[metric])
            stages.setdefault(point.stage, []).append(((point.at - points[0].at) / 3600, estimate, low, high))
    return picture(effect_over_time(stages, what, bound), what, caption)
