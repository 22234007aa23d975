"""What the benchmarks measure on: a made-up catalogue with every kind of feature, a bundle with random weights, requests.

Time does not depend on what the weights are. The shape is that of the default generator (width 64, one block).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from degre_prod.bundle import Bundle
from degre_prod.requests import FeatureColumns, Request
from degre_prod.schema import DataSchema, Feature, FeatureTable, parse_schema

EVENT_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
FIT_REQUESTS = 200
_SCHEMA = """
name: bench
id_type: int64
list_length: {length}
max_candidates: {candidates}
objectives: [{{name: click}}]
scores: [upstream]
context: [{{name: device, kind: categorical}}]
user:
  features:
  - {{name: activity, kind: numeric, transform: log1p}}
  - {{name: spend, kind: numeric, transform: log1p}}
  - {{name: segment, kind: categorical}}
  - {{name: taste, kind: vector, size: 4}}
item:
  features:
  - {{name: price, kind: numeric, transform: log1p}}
  - {{name: impressions, kind: numeric, transform: log1p}}
  - {{name: clicks, kind: numeric, transform: log1p}}
  - {{name: ctr, kind: numeric}}
  - {{name: rating, kind: numeric}}
  - {{name: age_days, kind: numeric, transform: log1p}}
  - {{name: quality, kind: numeric}}
  - {{name: brand, kind: categorical}}
  - {{name: style, kind: vector, size: 4}}
"""


@dataclass(frozen=True)
class Catalogue:
    """Feature columns of all users (ids 0 … U-1) and items (ids 0 … N-1)."""

    schema: DataSchema
    users: dict[str, np.ndarray]
    items: dict[str, np.ndarray]
    user_count: int
    item_count: int

    def columns(self, role: str, ids: np.ndarray) -> FeatureColumns:
        """Columns of these entities."""
        values = self.users if role == "user" else self.items
        return FeatureColumns(
            {n: v[ids] if v.dtype.kind == "f" else v[ids].tolist() for n, v in values.items()}, len(ids)
        )


def catalogue(*, candidates: int, length: int, users: int, items: int, seed: int = 0) -> Catalogue:
    """Random values for every feature of the schema."""
    rng = np.random.default_rng(seed)
    schema = parse_schema(_SCHEMA.format(candidates=max(candidates, length), length=length))

    def draw(table: FeatureTable, count: int) -> dict[str, np.ndarray]:
        return {f.name: _draw(f, count, rng) for f in table.features}

    return Catalogue(schema, draw(schema.user, users), draw(schema.item, items), users, items)


def _draw(feature: Feature, count: int, rng: np.random.Generator) -> np.ndarray:
    if feature.kind == "numeric":
        return rng.gamma(2.0, 3.0, count).astype(np.float32)
    if feature.kind == "vector":
        return rng.normal(size=(count, feature.size or 0)).astype(np.float32)
    return np.array([f"v{i}" for i in range(20)], object)[rng.integers(0, 20, count)]


def zipf_items(world: Catalogue, requests: int, candidates: int, seed: int = 1) -> np.ndarray:
    """Item ids (requests, candidates): distinct within a request, popularity by Zipf's law with exponent 1."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, world.item_count + 1)
    logs = np.log(weights)
    # The largest of log-weight + Gumbel noise are a draw without replacement.
    names = rng.permutation(world.item_count)
    rows = [np.argpartition(-(logs + rng.gumbel(size=len(logs))), candidates)[:candidates] for _ in range(requests)]
    chosen: np.ndarray = names[rng.permuted(np.array(rows), axis=1)]
    return chosen


def requests(world: Catalogue, count: int, candidates: int, seed: int = 2) -> list[Request]:
    """Requests with Zipf candidates."""
    rng = np.random.default_rng(seed)
    devices = ["phone", "desk", "tablet"]
    return [
        Request(
            request_id=f"bench-{index}",
            user_id=int(rng.integers(0, world.user_count)),
            event_timestamp_us=EVENT_US,
            candidate_ids=[int(i) for i in row],
            context={"device": devices[int(rng.integers(0, 3))]},
            scores={"upstream": [round(float(x), 6) for x in np.sort(rng.random(candidates))[::-1]]},
        )
        for index, row in enumerate(zipf_items(world, count, candidates, seed))
    ]


def random_bundle(world: Catalogue, folder: Path, candidates: int, seed: int = 0) -> Bundle:
    """A real, verified bundle around an untrained generator of the default shape; its weights follow from `seed`."""
    import torch

    from degre_prod.config import GeneratorConfig
    from degre_prod.encoding.fit import fit_encoder
    from degre_prod.models.generator import Generator
    from degre_prod.training.export import Lineage, write_bundle
    from degre_prod.training.generator import generator_spec

    rows = [
        (r, world.columns("user", np.array([r.user_id])), world.columns("item", np.array(r.candidate_ids)))
        for r in requests(world, FIT_REQUESTS, candidates)
    ]
    encoder = fit_encoder(world.schema, rows)
    torch.manual_seed(seed)
    generator = Generator(generator_spec(encoder.layout(), GeneratorConfig()))
    moment = datetime.fromtimestamp(EVENT_US / 1e6, UTC)
    lineage = Lineage("bench", moment, "bench", "bench", "bench", (moment, moment), {})
    return write_bundle(folder, generator, encoder, rows[:5], lineage)


def write_dataset(world: Catalogue, folder: Path) -> Path:
    """The data set folder that `materialize` reads: schema and feature tables, every row of EVENT_US."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from degre_prod.records import TIMESTAMP, feature_type

    folder.mkdir(parents=True)
    (folder / "schema.yaml").write_text(world.schema.to_yaml())
    for role, table, values, count in (
        ("user", world.schema.user, world.users, world.user_count),
        ("item", world.schema.item, world.items, world.item_count),
    ):
        moment = pa.array(np.full(count, EVENT_US), pa.int64()).cast(TIMESTAMP)
        columns = {f"{role}_id": pa.array(np.arange(count)), "event_timestamp": moment, "created_timestamp": moment}
        for f in table.features:
            column = list(values[f.name]) if f.kind == "vector" else values[f.name]
            columns[f.name] = pa.array(column, feature_type(f.kind, world.schema.id_type))
        pq.write_table(pa.table(columns), folder / f"{role}_features.parquet")
    return folder
