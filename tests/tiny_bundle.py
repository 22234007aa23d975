"""A small data set with every kind of column, and a real bundle around an untrained generator."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from helpers import small_schema, write_dataset

from degre_prod.bundle import Bundle
from degre_prod.rows import TrainingRow, read_rows
from degre_prod.schema import Feature

START_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
SECOND_US = 1_000_000


@dataclass(frozen=True)
class TinyWorld:
    """The data set, its point-in-time rows in order of time, the registry, and a bundle trained on nothing."""

    dataset: Path
    registry: Path
    rows: list[TrainingRow]
    bundle: Bundle


def tiny_world(folder: Path, seed: int = 0) -> TinyWorld:
    """Build it all: Feast's point-in-time join, the encoder, a random generator exported to ONNX (a few seconds)."""
    import torch

    from degre_prod.encoding.fit import fit_encoder
    from degre_prod.models.generator import Generator, GeneratorSpec
    from degre_prod.training.export import Lineage, write_bundle
    from orchestration.features.training_set import build_training_set

    schema = small_schema(
        "int64",
        list_length=3,
        scores=("upstream",),
        context=(Feature(name="hour", kind="numeric"), Feature(name="device", kind="categorical")),
        candidate_features=(Feature(name="discount", kind="numeric"), Feature(name="badge", kind="categorical")),
        recent_event_types=("click",),
    )
    rng = np.random.default_rng(seed)
    users, items = (_entities(role, count, rng) for role, count in (("user", 6), ("item", 20)))
    dataset = write_dataset(folder / "data", schema, users, items, [_impression(i, rng) for i in range(60)])
    registry = folder / "registry.db"
    build_training_set(dataset, registry, folder / "training", progress=False)
    rows = list(read_rows(folder / "training", schema))
    known = [(r.request, r.user, r.items) for r in rows]
    encoder = fit_encoder(schema, known)
    torch.manual_seed(seed)
    generator = Generator(GeneratorSpec(encoder.layout(), width=16, encoder_layers=1))
    bundle = write_bundle(folder / "bundle", generator, encoder, known[:5], _lineage(Lineage))
    return TinyWorld(dataset, registry, rows, bundle)


def _lineage(kind: Any) -> Any:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return kind(
        name="tiny",
        created=moment,
        made_from="test",
        evaluator_made_from="test",
        mined_made_from="test",
        training_window=(moment, moment),
        metrics={},
    )


def _entities(role: str, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Two versions of each entity, the second one in the middle of the log; the last entity is never written."""
    return [
        {
            f"{role}_id": entity,
            "event_timestamp": moment,
            "created_timestamp": moment,
            "amount": float(np.float32(rng.normal())),
            "other_amount": None if rng.random() < 0.3 else float(np.float32(rng.normal())),
            "group": str(rng.choice(["a", "b", "c"])),
            "position": [float(np.float32(x)) for x in rng.normal(size=3)],
            "history": [int(i) for i in rng.integers(0, 20, size=3)],
        }
        for entity in range(count - 1)
        for moment in (START_US - SECOND_US, START_US + 30 * SECOND_US)
    ]


def _impression(index: int, rng: np.random.Generator) -> dict[str, Any]:
    moment = START_US + index * SECOND_US + 17
    candidates = [int(i) for i in rng.permutation(20)[: rng.integers(1, 9)]]
    shown = candidates[:3]
    events = [
        {"item_id": int(rng.choice(candidates)), "type": "click", "timestamp": moment - int(1 + k) * SECOND_US}
        for k in range(int(rng.integers(0, 3)))
    ]
    return {
        "request_id": f"r{index}",
        "event_timestamp": moment,
        "user_id": int(rng.integers(0, 6)),
        "context": {"hour": float(rng.integers(0, 24)), "device": str(rng.choice(["phone", "desk"]))},
        "candidate_ids": candidates,
        "upstream_scores": {"upstream": [float(np.float32(x)) for x in rng.normal(size=len(candidates))]},
        "candidate_features": {
            "discount": [None if rng.random() < 0.2 else float(np.float32(x)) for x in rng.random(len(candidates))],
            "badge": [str(rng.choice(["new", "hot"])) for _ in candidates],
        },
        "recent_events": events,
        "shown_ids": shown,
        "feedback": {"click": [0.0] * len(shown)},
    }
