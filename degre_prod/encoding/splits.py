"""The splits of a training set by time, and their encoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from degre_prod.encoding.encoder import Encoder, save_encoder
from degre_prod.encoding.fit import fit_encoder
from degre_prod.encoding.store import save_encoded
from degre_prod.errors import DataError
from degre_prod.rows import TrainingRow, read_rows
from degre_prod.schema import DataSchema

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
FIT_ROWS = 6000  # rows the encoder's statistics are taken from, spread over the training split


def boundaries_us(folder: Path, schema: DataSchema) -> tuple[int, int]:
    """Where validation and test start (µs since 1970): the schema's moments, else the last fifth and tenth of the requests."""
    if schema.validation_start and schema.test_start:
        return boundaries_in(schema, np.empty(0))
    parts = [pq.read_table(p, columns=["event_timestamp"])["event_timestamp"] for p in sorted(folder.glob("part-*"))]
    return boundaries_in(schema, np.concatenate([pc.cast(p, "int64").to_numpy() for p in parts]))


def boundaries_in(schema: DataSchema, at_R: np.ndarray) -> tuple[int, int]:
    """`boundaries_us` of requests at these times (µs), of which there is at least one."""
    if schema.validation_start and schema.test_start:
        return round(schema.validation_start.timestamp() * 1e6), round(schema.test_start.timestamp() * 1e6)
    times = np.sort(at_R)
    return int(times[int(len(times) * 0.8)]), int(times[int(len(times) * 0.9)])


def split_of(time_us: int, boundaries: tuple[int, int]) -> Split:
    """The split of a request by its time."""
    return SPLITS[(time_us >= boundaries[0]) + (time_us >= boundaries[1])]


def refuse_empty(requests_by_split: Mapping[Split, int] | Mapping[str, int]) -> None:
    """Raises DataError, naming them, where splits have no request."""
    if empty := [name for name, count in requests_by_split.items() if not count]:
        raise DataError(
            f"no request in split {', '.join(empty)}; set validation_start and test_start inside the log's time span, "
            "or leave both out: the last fifth and tenth of the requests then validate and test",
            file="schema.yaml",
        )


def split_rows(
    folder: Path, schema: DataSchema, split: Split, boundaries: tuple[int, int] | None = None
) -> Iterator[TrainingRow]:
    """Rows of one split, in the order of the log; `boundaries` other than the schema's as in `boundaries_us`."""
    boundaries = boundaries or boundaries_us(folder, schema)
    return (r for r in read_rows(folder, schema) if split_of(r.request.event_timestamp_us, boundaries) == split)


def encode_splits(
    folder: Path,
    schema: DataSchema,
    out: Path,
    encoder: Encoder | None = None,
    boundaries: tuple[int, int] | None = None,
) -> None:
    """Fit on (a spread of) the training rows, then write encoder.json and the three splits into `out`.

    A given `encoder` is used as it is: for a second log that must be read like the first. `boundaries` other than the
    schema's as in `boundaries_us`. Raises DataError when a split has no request.
    """
    boundaries = boundaries or boundaries_us(folder, schema)
    rows: dict[Split, list[TrainingRow]] = {name: [] for name in SPLITS}
    for row in read_rows(folder, schema):
        rows[split_of(row.request.event_timestamp_us, boundaries)].append(row)
    refuse_empty({name: len(rows[name]) for name in SPLITS})
    if encoder is None:
        stride = max(1, len(rows["train"]) // FIT_ROWS)
        encoder = fit_encoder(schema, ((r.request, r.user, r.items) for r in rows["train"][::stride]))
    save_encoder(encoder, out / "encoder.json")
    for name in SPLITS:
        encode_rows(encoder, rows.pop(name), out / name)


def encode_rows(encoder: Encoder, rows: Sequence[TrainingRow], out: Path) -> None:
    """Encode rows into the folder `out`, as a split is."""
    save_encoded(
        out,
        [encoder.encode(r.request, r.user, r.items) for r in rows],
        shown=[r.shown_T for r in rows],
        feedback=[_known_feedback(r) for r in rows],
        request_ids=[r.request.request_id for r in rows],
        timestamps=[r.request.event_timestamp_us for r in rows],
    )


def _known_feedback(row: TrainingRow) -> np.ndarray:
    """feedback_OT with NaN where tracking was lost (`seen` is false); a slot the user never reached keeps its 0."""
    return row.feedback_OT if row.seen_T is None else np.where(row.seen_T, row.feedback_OT, np.float32("nan"))
