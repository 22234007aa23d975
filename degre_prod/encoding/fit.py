"""Fit the encoder on training rows, and on nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from degre_prod.encoding.columns import as_float, fit_categorical, fit_numeric
from degre_prod.encoding.encoder import Encoder, EncoderSpec, GroupColumns, request_only_columns
from degre_prod.errors import TrainingError
from degre_prod.requests import FeatureColumns, Request
from degre_prod.schema import DataSchema, Feature


def fit_encoder(schema: DataSchema, rows: Iterable[tuple[Request, FeatureColumns, FeatureColumns]]) -> Encoder:
    """Statistics and vocabularies over (request, user, items) rows; raises TrainingError when there are none."""
    numeric: dict[tuple[str, str], list[np.ndarray]] = {}
    counts: dict[tuple[str, str], Counter[str]] = {}
    empty = True

    def see(group: str, features: Sequence[Feature], values: Any) -> None:
        for f in features:
            present = values.get(f.name)
            if present is None or f.kind == "id_sequence":
                continue
            if f.kind == "categorical":
                counts.setdefault((group, f.name), Counter()).update(str(v) for v in present if v is not None)
            else:
                numeric.setdefault((group, f.name), []).append(as_float(present))

    scores = tuple(Feature(name=name, kind="numeric") for name in schema.scores)
    for request, user, items in rows:
        empty = False
        see("user", schema.user.features, user.values)
        see("item", schema.item.features, items.values)
        see("context", schema.context, {f.name: [request.context.get(f.name)] for f in schema.context})
        see("prior", (*scores, *_kind(schema.candidate_features, "numeric")), request_only_columns(schema, request))
        see("prior", _kind(schema.candidate_features, "categorical"), request.candidate_features)
    if empty:
        raise TrainingError(
            "no training rows to fit the encoder on; check validation_start and test_start in schema.yaml"
        )

    def group(name: str, features: Sequence[Feature]) -> GroupColumns:
        return GroupColumns(
            numeric=tuple(
                fit_numeric(f.name, _stack(numeric.get((name, f.name)), f), f.transform)
                for f in features
                if f.kind in ("numeric", "vector")
            ),
            categorical=tuple(
                fit_categorical(f.name, counts.get((name, f.name), Counter())) for f in _kind(features, "categorical")
            ),
        )

    return Encoder(
        EncoderSpec(
            data_schema=schema,
            item=group("item", schema.item.features),
            prior=group("prior", (*scores, *schema.candidate_features)),
            user=group("user", schema.user.features),
            context=group("context", schema.context),
        )
    )


def _kind(features: Sequence[Feature], kind: str) -> tuple[Feature, ...]:
    return tuple(f for f in features if f.kind == kind)


def _stack(parts: list[np.ndarray] | None, feature: Feature) -> np.ndarray:
    """All values seen, (R, S); a column never seen counts as missing throughout."""
    return np.concatenate(parts) if parts else np.full((1, feature.size or 1), np.nan, np.float32)
