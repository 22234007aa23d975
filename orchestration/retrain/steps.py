"""What each step of a night does. They work in the night's own folder; the champion's files are only read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degre_prod.artefact import digest, file_digest, finished, made_from, publish, workplace
from orchestration.retrain.inputs import logs
from orchestration.run import Run

if TYPE_CHECKING:
    from degre_prod.encoding.encoder import Encoder
    from degre_prod.schema import DataSchema
    from orchestration.registry import Version
    from orchestration.retrain.champion import Champion
    from orchestration.retrain.history import History
    from orchestration.retrain.period import Period
    from orchestration.retrain.state import Frozen
    from orchestration.retrain.warm import Start

_SHARD_CANDIDATES = 100_000  # candidate rows a part of the training set: about 1 GB


@dataclass(frozen=True)
class Night:
    """One night: the run it belongs to, its frozen inputs, its folder, the champion."""

    run: Run
    frozen: Frozen
    folder: Path
    champion: Champion | None
    schema: DataSchema

    def work(self, start: Start) -> Run:
        """The night's folder as a run, with tonight's settings: training set, encoding, networks and bundle lie there."""
        return Run(self.folder, self.run.dataset, start.settings)

    @property
    def log(self) -> Path:
        """The requests that are learnt from."""
        return self.folder / "log"

    def files(self, names: tuple[str, ...] | list[str]) -> list[Path]:
        """Impression logs among these partitions."""
        return [self.run.dataset / name for name in logs(names)]


def validate(night: Night) -> History:
    """Check every row, choose the history, write the log that is learnt from."""
    from orchestration.retrain.history import write_history

    return write_history(
        night.files(list(night.frozen.partitions)),
        night.files(night.frozen.new),
        night.schema,
        night.run.settings.retrain,
        night.log,
        now_us=night.frozen.began_us,
    )


def earlier(night: Night, history: History) -> Period | None:
    """What the new requests are compared with: those before them in tonight's rows, else the champion's own; None where there
    are neither."""
    from orchestration.retrain.period import Period

    folder = night.folder / "training_set"
    if history.from_us == history.new_from_us and night.champion is not None:
        folder = night.champion.bundle.parent / "training_set"
    elif history.from_us == history.new_from_us:
        return None
    period = Period(folder, night.schema, None, history.new_from_us)
    return period if any(folder.glob("part-*.parquet")) and period.rows(1) else None


def comparable(night: Night) -> bool:
    """Whether the champion can read tonight's requests, and its lists are judged as tonight's are."""
    from degre_prod.encoding.encoder import load_encoder
    from degre_prod.errors import FeatureError
    from orchestration.retrain.period import Period

    if night.champion is None:
        return False
    encoder = load_encoder(night.champion.encoder)
    shapes = [
        (schema.list_length, schema.max_candidates, [o.name for o in schema.objectives])
        for schema in (encoder.schema, night.schema)
    ]
    if shapes[0] != shapes[1]:
        return False
    (row,) = Period(night.folder / "training_set", night.schema).rows(1)
    try:
        encoder.encode(row.request, row.user, row.items)
    except (FeatureError, KeyError):
        return False
    return True


def training_set(night: Night) -> dict[str, Any]:
    """Point-in-time rows through Feast; returns their hash."""
    from orchestration.features.training_set import build_training_set

    out = night.folder / "training_set"
    rows = max(2000, _SHARD_CANDIDATES // night.schema.max_candidates)
    build_training_set(night.run.dataset, night.run.registry, out, log=night.log / "log.parquet", shard_rows=rows)
    return {"rows_sha256": digest([file_digest(part) for part in sorted(out.glob("part-*.parquet"))])}


def encode(night: Night, start: Start, history: History) -> None:
    """Encode the three parts: by the champion's encoder under tonight's schema, or by one fitted on tonight's rows."""
    from degre_prod.encoding.splits import encode_splits

    work = night.work(start)
    kept = None if start.encoder is None else _under(start.encoder, night.schema)
    own = None if kept is None else kept.digest()
    key = digest("encode", made_from(work.training_set), night.schema.digest(), history.boundaries, own)
    if not finished(work.encoded, key):
        place = workplace(work.encoded, key)
        encode_splits(work.training_set, night.schema, place, kept, history.boundaries)
        publish(work.encoded, key)


def register(night: Night, start: Start, history: History, figures: dict[str, float]) -> Version:
    """Record the candidate in the registry as challenger, with what it was made from."""
    from degre_prod.bundle.manifest import MANIFEST, read_manifest
    from orchestration.registry import CHALLENGER, open_registry
    from orchestration.retrain.lineage import code_version, data_lineage

    bundle = night.folder / "bundle"
    manifest = read_manifest(bundle)
    settings = night.run.settings
    sections = ("evaluator", "mining", "generator", "retrain")
    parameters = {f"{s}.{k}": v for s in sections for k, v in getattr(start.settings, s).model_dump().items()}
    champion = night.champion
    version = open_registry(registry_file(night.run), night.schema.name).register(
        manifest.name,
        bundle.resolve().as_uri(),
        file_digest(bundle / MANIFEST),
        parameters=parameters | {"mode": settings.mode, "start": "; ".join(start.reasons)},
        metrics={**manifest.metrics, **figures, "requests": history.requests, "new_requests": history.new},
        lineage={
            "night": night.frozen.id,
            "parent_bundle": champion.bundle.as_uri() if champion else "none",
            "parent_manifest_sha256": champion.manifest_sha256 if champion else "none",
            "made_from": manifest.made_from,
            "code_version": code_version(),
            **data_lineage(night.frozen.partitions, night.folder / "inputs.json"),
        },
    )
    open_registry(registry_file(night.run), night.schema.name).point(CHALLENGER, version.version)
    return version


def activate(night: Night, redis_url: str) -> dict[str, Any]:
    """Let the rollout plan name the candidate, unless it does already; then let the registry's aliases follow."""
    import redis

    from degre_prod.bundle.manifest import MANIFEST
    from orchestration.registry import CHALLENGER, CHAMPION, open_registry
    from orchestration.rollout import activate as publish_bundle
    from serving.plan_store import read_plan

    bundle = night.folder / "bundle"
    sha256 = file_digest(bundle / MANIFEST)
    with redis.Redis.from_url(redis_url, socket_timeout=5.0) as client:
        plan = read_plan(client)
    if plan is None or plan.champion.manifest_sha256 != sha256:
        plan = publish_bundle(bundle, redis_url)
    registry = open_registry(registry_file(night.run), night.schema.name)
    version = next(v for v in registry.versions() if v.manifest_sha256 == sha256)
    registry.point(CHAMPION, version.version)
    challenger = registry.alias(CHALLENGER)
    if challenger is not None and challenger.version == version.version:
        registry.withdraw(CHALLENGER)
    return {"plan_version": plan.version, "version": version.version, "manifest_sha256": sha256}


def registry_file(run: Run) -> Path:
    """MLflow's database of a run, where no MLFLOW_TRACKING_URI names a server."""
    return Path(os.path.abspath(run.folder)) / "mlflow.db"


def _under(encoder: Path, schema: DataSchema) -> Encoder:
    """A kept encoder under tonight's schema: same columns, perhaps other constraints."""
    from degre_prod.encoding.encoder import Encoder, load_encoder

    return Encoder(load_encoder(encoder).spec.model_copy(update={"data_schema": schema}))
