"""What the bundle answers to logged requests, one parquet file for each part of the point-in-time rows.

A row a request: what was shown, what the bundle would have shown under the same constraints and of the same length, what
the judge thinks of both, what the log says of chances and feedback, and the segments the request belongs to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from degre_prod.errors import BundleError, ConstraintError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from degre_prod.bundle import Bundle
    from degre_prod.encoding.encoder import Encoder
    from degre_prod.models.judge import Judge
    from degre_prod.rows import TrainingRow
    from degre_prod.schema import DataSchema

LOGGED = ("propensity", "list_propensity", "bundle", "arm", "source", "constraints")


@dataclass(frozen=True)
class Jury:
    """A judge and the encoder through which it reads requests."""

    model: Judge
    encoder: Encoder


def load_jury(folder: Path) -> Jury:
    """The judge of a folder, as `train_judge_step` leaves it."""
    from degre_prod.encoding.encoder import load_encoder
    from degre_prod.training.modules import load_judge

    return Jury(load_judge(folder), load_encoder(folder / "encoder.json"))


def answer_part(part: Path, bundle: Bundle, jury: Jury | None, out: Path) -> None:
    """Write the answers to the requests of one part as `out`; a request no list can be made for has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from degre_prod.artefact import written_aside
    from degre_prod.records import id_type
    from degre_prod.rows import part_rows

    schema = bundle.schema
    rows = list(part_rows(part, schema))
    logged = _logged(part, len(rows))
    L = schema.list_length
    shown_RL, answered_RL = np.full((len(rows), L), -1), np.full((len(rows), L), -1)
    for r, row in enumerate(rows):
        kept = row.shown_T[:L]
        shown_RL[r, : len(kept)] = kept
        order = answer(bundle, row, logged["constraints"][r], len(kept))
        answered_RL[r, : len(order)] = order
    columns: dict[str, Any] = {
        "request_id": [row.request.request_id for row in rows],
        "event_us": [row.request.event_timestamp_us for row in rows],
        "shown": _ids(rows, shown_RL),
        "answered": _ids(rows, answered_RL),
        "earned": [_earned(row, schema) for row in rows],
        "judged_shown": judged(jury, rows, shown_RL),
        "judged_answered": judged(jury, rows, answered_RL),
        **{name: logged[name] for name in LOGGED if name != "constraints"},
        "segments": [json.dumps(_segments(row, schema, logged, r)) for r, row in enumerate(rows)],
        "shown_categories": [
            json.dumps(_categories(row, schema, items)) for row, items in zip(rows, shown_RL, strict=True)
        ],
        "answered_categories": [
            json.dumps(_categories(row, schema, items)) for row, items in zip(rows, answered_RL, strict=True)
        ],
    }
    ids, slots = pa.list_(id_type(schema.id_type)), pa.list_(pa.float64())
    kinds = {"shown": ids, "answered": ids, "earned": slots, "judged_shown": slots, "judged_answered": slots}
    kinds |= {"propensity": slots, "list_propensity": pa.float64(), "event_us": pa.int64()}
    fields = [pa.field(name, kinds.get(name, pa.string())) for name in columns]
    table = pa.Table.from_pydict(columns, schema=pa.schema(fields))
    with written_aside(out) as aside:
        pq.write_table(table, aside)


def answer(bundle: Bundle, row: TrainingRow, constraints: str | None, length: int) -> np.ndarray:
    """The bundle's list of `length` slots as indices into the candidates, under the standing constraints and the request's
    own (JSON); empty where there is none."""
    from degre_prod.constraints.settle import candidate_columns, settle
    from degre_prod.constraints.spec import Constraints

    own = Constraints.model_validate_json(constraints) if constraints else None
    ids = row.request.candidate_ids
    choice = len(ids) - (len(set(own.exclude) & set(ids)) if own else 0)
    columns = candidate_columns(bundle.schema, row.request, row.items)
    length = min(length, choice)
    try:
        settled = settle(bundle.schema.constraints, own, ids, columns, length, trust_region=bundle.trust_region)
        encoded = bundle.encoder.encode(row.request, row.user, row.items)
        return np.asarray(bundle.decode(encoded, length, settled.rules).order)
    except (ConstraintError, BundleError):  # as the service would: a fallback, which is not this bundle's doing
        return np.empty(0, np.int64)


def _logged(part: Path, rows: int) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    there = [n for n in LOGGED if n in pq.read_schema(part).names]
    found = pq.read_table(part, columns=there).to_pydict() if there else {}
    return {name: found.get(name, [None] * rows) for name in LOGGED}


def _ids(rows: Sequence[TrainingRow], lists_RL: np.ndarray) -> list[list[Any]]:
    return [
        [row.request.candidate_ids[c] for c in items if c >= 0]
        for row, items in zip(rows, lists_RL.tolist(), strict=True)
    ]


def _earned(row: TrainingRow, schema: DataSchema) -> list[float | None]:
    """Utility of each slot; None where tracking was lost."""
    T = min(len(row.shown_T), schema.list_length)
    weight_OL = np.array(schema.slot_weights_OL()) * np.array([o.weight for o in schema.objectives])[:, None]
    earned_T = (row.feedback_OT[:, :T] * weight_OL[:, :T]).sum(0).astype(float)
    seen_T = np.ones(T, bool) if row.seen_T is None else row.seen_T[:T]
    return [value if seen else None for value, seen in zip(earned_T.tolist(), seen_T.tolist(), strict=True)]


def judged(jury: Jury | None, rows: Sequence[TrainingRow], lists_RL: np.ndarray) -> list[list[float] | None]:
    """What the judge believes of each slot of lists_RL (indices into the candidates, -1 past a short one); None without one."""
    import tempfile

    from degre_prod.encoding.store import load_encoded, save_encoded
    from degre_prod.training.judge import judged_slots

    if jury is None:
        return [None] * len(rows)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        save_encoded(
            place,
            [jury.encoder.encode(r.request, r.user, r.items) for r in rows],
            shown=[r.shown_T for r in rows],
            feedback=[r.feedback_OT for r in rows],
            request_ids=[r.request.request_id for r in rows],
            timestamps=[r.request.event_timestamp_us for r in rows],
        )
        judged_RL = judged_slots(jury.model, load_encoded(place), lists_RL)
    counts = (lists_RL >= 0).sum(1)
    return [values[:n] for values, n in zip(judged_RL.tolist(), counts.tolist(), strict=True)]


def _segments(row: TrainingRow, schema: DataSchema, logged: dict[str, list[Any]], r: int) -> dict[str, str | None]:
    """Values of the categorical columns of user and context, the hour (UTC), and who made the list that was served."""
    hour = row.request.event_timestamp_us // 3_600_000_000 % 24
    found: dict[str, str | None] = {"hour": f"{hour:02d}"}
    for feature in schema.user.features:
        if feature.kind == "categorical":
            found[f"user.{feature.name}"] = row.user.values[feature.name][0]
    for feature in schema.context:
        if feature.kind == "categorical":
            found[f"context.{feature.name}"] = row.request.context.get(feature.name)
    return found | {name: logged[name][r] for name in ("source", "arm") if logged[name][r] is not None}


def _categories(row: TrainingRow, schema: DataSchema, items_L: np.ndarray) -> dict[str, list[Any]]:
    """The categorical columns of items and candidates, for the items of a list."""
    from degre_prod.constraints.settle import candidate_columns

    chosen = items_L[items_L >= 0].tolist()
    return {
        name: [values[c] for c in chosen] for name, values in candidate_columns(schema, row.request, row.items).items()
    }
