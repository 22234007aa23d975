"""From nothing to a bundle that can serve: data, features in Redis, a first bundle. What is there already stays as it is."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degre_prod.artefact import replace_folder, write_text
from degre_prod.bundle.manifest import MANIFEST
from degre_prod.config import Settings
from degre_prod.errors import DataError

if TYPE_CHECKING:
    from orchestration.run import Run

SCHEMA_FILE = "schema.yaml"
OWN = (SCHEMA_FILE, "impressions.parquet", "user_features.parquet", "item_features.parquet")
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


def bootstrap(folder: Path, settings: Settings, redis_url: str, own: Path, world: World) -> dict[str, Any]:
    """Fill a run folder and Redis; returns which steps had something to do.

    With a `schema.yaml` in `own` that data set is copied and learnt from, else the simulated world. Training runs in this
    process: no cluster is needed yet. Raises DataError, FeatureError, TrainingError.
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
    step("data", not (data / SCHEMA_FILE).is_file(), lambda: _data(data, own, world))
    update: dict[str, Any] = {"scaling": settings.scaling.model_copy(update={"num_workers": 0})}
    if not (own / SCHEMA_FILE).is_file():  # it shows the way: one form, not the best of three
        update["evaluator"] = settings.evaluator.model_copy(update={"prefix_state": "additive"})
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


def _data(data: Path, own: Path, world: World) -> None:
    if (own / SCHEMA_FILE).is_file():
        copy_dataset(own, data)
        return
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


def copy_dataset(own: Path, data: Path) -> None:
    """Copy a data set, whole or not at all: what is collected goes into the copy. Raises DataError where a file is missing."""
    if missing := [name for name in OWN if not (own / name).exists()]:
        raise DataError(f"a data set has {', '.join(OWN)}; missing: {', '.join(missing)}", file=str(own))
    aside = data.with_name(f".{data.name}.copying")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in OWN:
        (shutil.copytree if (own / name).is_dir() else shutil.copyfile)(own / name, aside / name)
    replace_folder(aside, data)


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
