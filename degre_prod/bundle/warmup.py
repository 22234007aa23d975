"""`warmup.jsonl`: recorded requests with their features and answers, so that a bundle can prove itself before serving."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from degre_prod.requests import FeatureColumns, Id, RecentEvent, Request
from degre_prod.schema import DataSchema, Feature


@dataclass(frozen=True)
class Recorded:
    """A request, the feature columns it was answered with, and the ids of the answer in order."""

    request: Request
    user: FeatureColumns
    items: FeatureColumns
    answer: tuple[Id, ...]


def to_line(recorded: Recorded) -> str:
    """One line of JSON; float32 values survive the round trip, missing ones become null."""
    request = asdict(recorded.request)
    request["recent_events"] = [asdict(e) for e in recorded.request.recent_events]
    document = {
        "request": request,
        "user": dict(recorded.user.values),
        "items": dict(recorded.items.values),
        "answer": list(recorded.answer),
    }
    return json.dumps(_no_nan(document), separators=(",", ":"))


def read_lines(path: Path, schema: DataSchema) -> Iterator[Recorded]:
    """Parse a warm-up file; raises ValueError or KeyError on malformed lines."""
    for line in path.read_text().splitlines():
        document = json.loads(line)
        raw = document["request"]
        request = Request(**{**raw, "recent_events": [RecentEvent(**e) for e in raw["recent_events"]]})
        yield Recorded(
            request,
            _columns(document["user"], schema.user.features, 1),
            _columns(document["items"], schema.item.features, len(request.candidate_ids)),
            tuple(document["answer"]),
        )


def _columns(values: dict[str, list[Any]], features: Sequence[Feature], rows: int) -> FeatureColumns:
    out: dict[str, np.ndarray | list[Any]] = {}
    for f in features:
        column = values[f.name]
        if f.kind == "numeric":
            out[f.name] = np.array([math.nan if v is None else v for v in column], np.float32)
        elif f.kind == "vector":
            out[f.name] = np.array([[math.nan if v is None else v for v in row] for row in column], np.float32).reshape(
                rows, f.size or 0
            )
        else:
            out[f.name] = column
    return FeatureColumns(out, rows)


def _no_nan(value: Any) -> Any:
    """JSON's own types, None for NaN."""
    if isinstance(value, dict):
        return {k: _no_nan(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _no_nan(value.tolist())
    if isinstance(value, list | tuple):
        return [_no_nan(v) for v in value]
    if isinstance(value, np.generic):
        return _no_nan(value.item())
    return None if isinstance(value, float) and math.isnan(value) else value
