"""From nothing to a bundle that can serve: data, features in Redis, a first bundle. What is there already stays as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degre_prod.artefact import MARK, write_text
from degre_prod.bundle.manifest import MANIFEST
from degre_prod.config import Settings
from orchestration.stack.own_data import SCHEMA_FILE, has_own, refuse_another, take_own

if TYPE_CHECKING:
    from orchestration.run import Run

REQUEST = "request.json"


@dataclass(frozen=True)
class World:
    """The simulated world that stands in for a log: its size and its requests of each split."""

    name: str = "mixed"
    size: str = "small"
    seed: int = 0
    train: int = 12_000
    validation: int = 1_500
    test: int = 500


def bootstrap(
    folder: Path, settings: Settings, redis_url: str, own: Path, world: World, named: str = ""
) -> dict[str, Any]:
    """Fill a run folder and Redis; returns which steps had something to do.

    With a `schema.yaml` in `own` that data set is checked, copied and learnt from, else the simulated world. `named` is what
    the user called it: something named must be a data set. Training runs in this process: no cluster is needed yet.
    Raises DataError, SchemaError, FeatureError, TrainingError.
    """
    from orchestration import stages
    from orchestration.demo import validated
    from orchestration.run import open_run

    done: list[str] = []

    def step(name: str, needed: bool, do: Callable[[], object]) -> None:
        print(f"▸ {name}{'' if needed else ': there already'}", file=sys.stderr, flush=True)
        if needed:
            do()
            done.append(name)

    data = folder / "data"
    mounted, there = has_own(own, named), (data / SCHEMA_FILE).is_file()
    if mounted and there:
        refuse_another(own, data)
    step("data", not there, lambda: take_own(own, data, settings, named) if mounted else _simulate(data, world))
    update: dict[str, Any] = {"scaling": settings.scaling.model_copy(update={"num_workers": 0})}
    if (data / MARK).is_file():  # simulated, to show the way: one form, not the best of three, once
        update["evaluator"] = settings.evaluator.model_copy(update={"prefix_state": "additive", "members": 1})
    run = open_run(folder, settings.model_copy(update=update))
    step("features", not _materialised(redis_url), lambda: _materialise(run, redis_url))

    def first_bundle() -> None:
        validated(run)
        parts: list[Callable[[Run], None]] = [
            stages.build_training_rows,
            stages.encode,
            stages.train_evaluator,
            stages.mine,
            stages.train_generator,
        ]
        for part in (*parts, _example, stages.build_bundle):  # the bundle last: it says that all the rest is there
            part(run)

    step("bundle", not (run.bundle / MANIFEST).is_file(), first_bundle)
    return {"run": str(folder), "bundle": str(run.bundle), "done": done}


def _simulate(data: Path, world: World) -> None:
    from degre_prod.worlds.simulate import simulate

    simulate(
        world.name,
        world.size,
        data,
        seed=world.seed,
        train=world.train,
        validation=world.validation,
        test=world.test,
    )


def _materialised(redis_url: str) -> bool:
    from redis import Redis

    from orchestration.features.materialize import EPOCH_KEY

    with Redis.from_url(redis_url) as client:
        return bool(client.exists(EPOCH_KEY))


def _materialise(run: Run, redis_url: str) -> None:
    from orchestration.features.materialize import materialize

    materialize(run.dataset, run.registry, redis_url)


def _example(run: Run) -> None:
    """A logged request as `degre rerank --file` and curl take it."""
    from degre_prod.encoding.splits import split_rows
    from degre_prod.schema import load_schema
    from orchestration.replay import to_http

    row = next(split_rows(run.training_set, load_schema(run.dataset), "validation"))
    body = to_http(row.request, explain=False)
    hidden = {"event_timestamp", "deadline_ms", "request_id"}
    write_text(run.folder / REQUEST, body.model_dump_json(exclude=hidden, exclude_defaults=True) + "\n")
