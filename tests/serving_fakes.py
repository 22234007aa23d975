"""A bundle and a feature reader with no model behind them: the highest item id first, misbehaving on demand."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from degre_prod.config import ServingConfig
from degre_prod.constraints.rules import Rules
from degre_prod.errors import FeatureError
from degre_prod.requests import FeatureColumns, Request
from degre_prod.schema import DataSchema, parse_schema
from serving.clock import fixed_clock
from serving.engine import Engine
from serving.fallback import first_feasible
from serving.features import FeatureRead

NOW_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
BRANDS = ("acme", "bolt", None)  # of item i: BRANDS[i % 3]
SCHEMA = """
name: fake
id_type: int64
list_length: 3
max_candidates: 6
objectives: [{name: click}]
user: {features: [{name: age, kind: numeric}]}
item: {features: [{name: price, kind: numeric}, {name: brand, kind: categorical}]}
context: [{name: hour, kind: numeric}, {name: device, kind: categorical}]
candidate_features: [{name: discount, kind: numeric}, {name: badge, kind: categorical}]
scores: [upstream, second]
recent_event_types: [click]
"""


def fake_schema(constraints: str = "") -> DataSchema:
    return parse_schema(SCHEMA + constraints)


@dataclass
class FakeDecoded:
    order: np.ndarray
    margins: np.ndarray
    logits: np.ndarray | None = None
    runner_up: np.ndarray | None = None


@dataclass
class FakeEncoder:
    seen: list[Request] = field(default_factory=list)

    def encode(self, request: Request, user: FeatureColumns, items: FeatureColumns) -> dict[str, np.ndarray]:
        assert user.rows == 1
        assert items.rows == len(request.candidate_ids)
        self.seen.append(request)
        return {"ids": np.array(request.candidate_ids)}


@dataclass
class FakeBundle:
    manifest_sha256: str = "a" * 64
    schema: DataSchema = field(default_factory=fake_schema)
    encoder: FakeEncoder = field(default_factory=FakeEncoder)
    broken: str = ""
    follows_rules: bool = True
    trust_region: int | None = None

    def decode(self, encoded: dict[str, np.ndarray], length: int, rules: Rules | None = None) -> FakeDecoded:
        if self.broken == "raises":
            raise RuntimeError("the model is broken")
        ranking = np.argsort(-encoded["ids"], kind="stable")
        order = ranking[:length]
        if rules is not None and self.broken != "disobeys":
            order = np.array(first_feasible(rules, ranking))
        if self.broken == "twice":
            order[:] = order[0]
        margins = np.arange(length, 0, -1, dtype=np.float32)
        if len(encoded["ids"]) == length:
            margins[-1] = np.inf
        return FakeDecoded(order, margins)


@dataclass
class FakeFeatures:
    """`gate` held closed makes every read hang until it is opened."""

    known_items: set[int] = field(default_factory=lambda: set(range(100)))
    fails: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    reads: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def read(self, user_id: Any, item_ids: Sequence[Any], now_us: int) -> FeatureRead:
        assert now_us > 0
        self.gate.wait(10)
        self.reads += 1
        if self.fails:
            raise FeatureError("Redis is away")
        unknown = sum(i not in self.known_items for i in item_ids)
        price = np.array([float(i) if i in self.known_items else np.nan for i in item_ids], np.float32)
        return FeatureRead(
            user=FeatureColumns({"age": np.array([30.0], np.float32)}, 1),
            items=FeatureColumns({"price": price, "brand": [BRANDS[i % 3] for i in item_ids]}, len(item_ids)),
            unknown_user=user_id == 404,
            stale_user=user_id == 410,
            unknown_items=unknown,
            stale_items=sum(i == 77 for i in item_ids),
        )

    def close(self) -> None:
        pass


def fake_engine(
    features: FakeFeatures | None = None, bundle: FakeBundle | None = None, cache: Any = None, **serving: Any
) -> Engine:
    # A busy machine must not turn an answer into a fallback where the deadline is not what is tested.
    settings = ServingConfig(**{"deadline_ms": 5000.0} | serving)
    return Engine(bundle or FakeBundle(), features or FakeFeatures(), cache, settings, fixed_clock(NOW_US))
