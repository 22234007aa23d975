"""The offline stages of a run, in order: training set, encoding, evaluator, mining, generator, bundle."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degre_prod.artefact import digest, file_digest, finished, made_from, publish, workplace
from degre_prod.errors import MismatchError
from degre_prod.schema import load_schema
from orchestration.run import Run

if TYPE_CHECKING:
    from degre_prod.training.launch import Launch

_FORMAT = 3  # part of every hash: raise it when the same inputs give other outputs
WARMUP_REQUESTS = 32


def build_training_rows(run: Run) -> None:
    """Point-in-time rows of every logged request, through Feast's offline store."""
    from orchestration.features.training_set import build_training_set

    log = run.accepted if run.accepted.is_file() else None
    build_training_set(run.dataset, run.registry, run.training_set, log=log)


def encode(run: Run) -> None:
    """Fit the encoder on the training split, encode every split."""
    from degre_prod.encoding.splits import encode_splits

    key = digest("encode", _FORMAT, made_from(run.training_set), load_schema(run.dataset).digest())
    if finished(run.encoded, key):
        return
    encode_splits(run.training_set, load_schema(run.dataset), workplace(run.encoded, key))
    publish(run.encoded, key)


@contextmanager
def group_ahead(run: Run) -> Iterator[Launch | None]:
    """The worker group, which starts while the block makes what it will learn from: for `learn`. None where the run has a
    generator: there may be nothing to learn."""
    from degre_prod.training.launch import started_group

    if run.generator.is_dir():
        yield None
        return
    with started_group(run.folder, run.settings.scaling) as launch:
        yield launch


def learn(run: Run, launch: Launch | None = None) -> dict[str, float]:
    """Evaluator, mining and generator, all from nothing, in one launch of the worker group, or in one that was started before;
    seconds of each by name, 0 for what was there. Raises TrainingError when a worker fails for good; what was made by then stays."""
    evaluator = _evaluator(run)
    mined = _mining(run, evaluator.key)
    seconds = _make(run, [evaluator, mined, _generator(run, mined.key)], launch)
    _tell_infeasible(run)
    return seconds


def train_evaluator(run: Run, warm_start: Path | None = None) -> None:
    """Lookahead Evaluator, value to go and the pointwise baseline, on the worker group; from nothing, or from the weights
    of the evaluator in the folder `warm_start`."""
    _make(run, [_evaluator(run, warm_start)])


def mine(run: Run) -> None:
    """High-value unexposed lists of training requests, on the worker group."""
    _make(run, [_mining(run, made_from(run.evaluator))])
    _tell_infeasible(run)


def train_generator(run: Run, warm_start: Path | None = None) -> None:
    """Online Generator from the mined lists' dense targets, on the worker group; from nothing, or from the weights of the
    generator in the folder (of a generator or a bundle) `warm_start`."""
    mined = _mining(run, made_from(run.evaluator))
    if not finished(run.mined, mined.key):
        raise MismatchError(
            f"{run.mined} was not mined by the evaluator in {run.evaluator} with these settings; run `degre mine {run.folder}`"
        )
    _make(run, [_generator(run, mined.key, warm_start)])


def build_bundle(run: Run, *, parent: str | None = None, boundaries: tuple[int, int] | None = None) -> None:
    """Export, record warm-up answers, verify. `parent`: manifest sha256 of the bundle this one is to replace;
    `boundaries`: of the splits, where they aren't the schema's."""
    from datetime import UTC, datetime
    from itertools import islice

    from degre_prod.bundle.manifest import read_manifest
    from degre_prod.encoding.encoder import load_encoder
    from degre_prod.encoding.splits import split_rows
    from degre_prod.encoding.store import load_encoded
    from degre_prod.mining.record import read_record
    from degre_prod.training.export import Lineage, write_bundle
    from degre_prod.training.modules import load_generator

    key = digest("bundle", _FORMAT, made_from(run.generator), *([parent] if parent else []))
    if run.bundle.is_dir() and read_manifest(run.bundle).made_from == key:
        return
    encoder = load_encoder(run.encoded / "encoder.json")
    times = load_encoded(run.encoded / "train").arrays["timestamp"]
    rows = islice(split_rows(run.training_set, encoder.schema, "validation", boundaries), WARMUP_REQUESTS)
    curves = _curves(run.generator)["generator"]
    write_bundle(
        run.bundle,
        load_generator(run.generator),
        encoder,
        [(r.request, r.user, r.items) for r in rows],
        Lineage(
            name=f"{encoder.schema.name}-{key[:8]}",
            created=datetime.now(UTC),
            made_from=key,
            evaluator_made_from=made_from(run.evaluator),
            mined_made_from=made_from(run.mined),
            training_window=(_moment(times.min()), _moment(times.max())),
            metrics={"generator_validation_loss": min(r["validation"] for r in curves)},
            parent=parent,
        ),
        trust_region=read_record(run.mined).trust_region,
    )


@contextmanager
def ray_cluster(run: Run) -> Iterator[None]:
    """Ray for the worker group: the configured cluster, else a private one that is stopped afterwards; none for 0 workers."""
    if run.settings.scaling.num_workers == 0:
        yield
        return
    from serving.cluster import ray_cluster as joined

    with joined(run.settings.ray):
        yield


@dataclass(frozen=True)
class _Part:
    """An artefact that the worker group makes: what its task is given, and the hash of all it is made from."""

    label: str
    task: Callable[[dict[str, Any]], None]
    config: dict[str, Any]
    out: Path
    key: str


def _evaluator(run: Run, warm_start: Path | None = None) -> _Part:
    from degre_prod.training.evaluator import train_evaluator as task

    settings = run.settings.evaluator.model_dump()
    config: dict[str, Any] = {"encoded": str(run.encoded), "evaluator": settings}
    known = [made_from(run.encoded), settings]
    if warm_start is not None:
        config["warm_start"] = str(warm_start)
        known.append(file_digest(warm_start / "evaluator.safetensors"))
    return _Part("evaluator", task, config, run.evaluator, digest("evaluator", _FORMAT, *known))


def _mining(run: Run, evaluator_key: str) -> _Part:
    from degre_prod.mining.mine import mine as task

    settings = run.settings.mining.model_dump()
    config = {"encoded": str(run.encoded), "evaluator": str(run.evaluator), "mining": settings}
    key = digest("mined", _FORMAT, made_from(run.encoded), evaluator_key, settings)
    return _Part("mining", task, config, run.mined, key)


def _generator(run: Run, mined_key: str, warm_start: Path | None = None) -> _Part:
    from degre_prod.training.generator import train_generator as task

    settings = run.settings.generator.model_dump()
    known: list[Any] = [mined_key, settings]
    config: dict[str, Any] = {"encoded": str(run.encoded), "mined": str(run.mined), "generator": settings}
    config |= {"evaluator": str(run.evaluator), "mining": run.settings.mining.model_dump()}  # for on-policy rounds
    if warm_start is not None:
        config["warm_start"] = str(warm_start)
        known.append(file_digest(warm_start / "generator.safetensors"))
    return _Part("generator", task, config, run.generator, digest("generator", _FORMAT, *known))


def _make(run: Run, parts: Sequence[_Part], launch: Launch | None = None) -> dict[str, float]:
    """Make what is not there yet, in one launch; seconds by label, 0 for what was there."""
    from degre_prod.training.launch import Job, run_jobs

    left = [part for part in parts if not finished(part.out, part.key)]
    jobs = []
    for part in left:
        place = workplace(part.out.absolute(), part.key)
        config = {k: str(Path(v).absolute()) if isinstance(v, str) else v for k, v in part.config.items()}
        jobs.append(
            Job(part.label, part.task, {**config, "folder": str(place)}, place, (part.out.absolute(), part.key))
        )
    launch = launch or partial(run_jobs, scaling=run.settings.scaling)
    seconds = launch(jobs) if jobs else {}
    for part in left:
        print(f"{part.label}: {part.out}", file=sys.stderr)
    return {part.label: 0.0 for part in parts} | seconds


def _tell_infeasible(run: Run) -> None:
    from degre_prod.mining.record import read_record

    record = read_record(run.mined)
    if record.infeasible:
        print(
            f"mining: {record.infeasible} of {record.mined + record.infeasible} requests have no list that obeys the "
            "constraints in schema.yaml and the trust region; they were left out",
            file=sys.stderr,
        )


def _curves(folder: Path) -> dict[str, list[dict[str, float]]]:
    import json

    return dict(json.loads((folder / "curves.json").read_text()))


def _moment(microseconds: Any) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(int(microseconds) / 1e6, UTC)
