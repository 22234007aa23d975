"""The encoder: `encode(request, user, items) -> arrays` in pure numpy, the only path to the models.

Arrays of one request (C candidates in upstream order):
    item_num_CF float32 · item_cat_CF int64    what the feature store knows of each candidate
    prior_num_CF float32 · prior_cat_CF int64  upstream rank and scores, request-only features, cross features
    user_num_F, user_cat_F                     the user
    context_num_F, context_cat_F               the request
    prior_rank_C int64                         settles ties
Missing values are 0 with a flag (where training had any missing), unknown categories index 1, an unknown or stale entity
has everything missing and its `absent` flag set.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from degre_prod.artefact import write_text
from degre_prod.encoding import cross
from degre_prod.encoding.columns import MISSING, UNKNOWN, CategoricalColumn, NumericColumn, as_float
from degre_prod.encoding.numeric import NumericBlock
from degre_prod.errors import BundleError, FeatureError, explain
from degre_prod.requests import FeatureColumns, Request
from degre_prod.schema import DataSchema

Encoded = dict[str, np.ndarray]
GROUPS = ("item", "prior", "user", "context")


class GroupColumns(BaseModel):
    """The fitted columns of one group, in array order (numeric first, each with its flag)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    numeric: tuple[NumericColumn, ...] = ()
    categorical: tuple[CategoricalColumn, ...] = ()


class EncoderSpec(BaseModel):
    """What `encoder.json` holds: the schema and the fitted columns of each group.

    Format 1 lacks the cross features that relate a candidate to the one touched last; it is read and encoded as ever.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1, 2] = 2
    data_schema: DataSchema
    item: GroupColumns
    prior: GroupColumns
    user: GroupColumns
    context: GroupColumns


@dataclass(frozen=True)
class Layout:
    """Widths of the encoder's arrays, from which the models size themselves: numeric width and cardinalities by group."""

    num: dict[str, int]
    cat: dict[str, tuple[int, ...]]
    list_length: int
    objectives: int
    position_free: bool = False


@dataclass(frozen=True)
class Encoder:
    """See the module's docstring; make one with `fit_encoder` or `load_encoder`."""

    spec: EncoderSpec
    _lookups: dict[str, list[tuple[str, dict[str, int]]]] = field(init=False, repr=False, compare=False)
    _numeric: dict[str, NumericBlock] = field(init=False, repr=False, compare=False)
    _layout: Layout = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        groups: dict[str, GroupColumns] = {g: getattr(self.spec, g) for g in GROUPS}
        lookups = {g: [(c.name, c.lookup()) for c in columns.categorical] for g, columns in groups.items()}
        object.__setattr__(self, "_lookups", lookups)
        blocks = {g: NumericBlock(columns.numeric) for g, columns in groups.items()}
        object.__setattr__(self, "_numeric", blocks)
        object.__setattr__(self, "_layout", self._widths())

    @property
    def schema(self) -> DataSchema:
        """The data set's schema the encoder was fitted for."""
        return self.spec.data_schema

    def to_json(self) -> str:
        """Canonical JSON; equal encoders give equal text."""
        return json.dumps(self.spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """sha256 of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def layout(self) -> Layout:
        """Array widths; cross features are counted where `encode` appends them."""
        return self._layout

    def _widths(self) -> Layout:
        schema = self.schema
        num = {g: sum(c.width for c in getattr(self.spec, g).numeric) for g in GROUPS}
        sequences = sum(f.kind == "id_sequence" for f in schema.user.features)
        in_list = len(schema.scores) + sum(f.kind == "numeric" for f in schema.candidate_features)
        num["item"] += 1
        num["user"] += 1
        num["context"] += 1
        num["prior"] += cross.PRIOR_RANK_WIDTH + cross.IN_LIST_WIDTH * in_list + cross.SEQUENCE_WIDTH * sequences
        if schema.recent_event_types:
            num["prior"] += cross.RECENT_WIDTH + cross.RECENT_WIDTH_PER_TYPE * len(schema.recent_event_types)
        if schema.recent_event_types and self.spec.format_version >= 2:
            num["prior"] += cross.NEAR_LAST_WIDTH + cross.VALUE_TO_LAST_WIDTH * in_list
        cat = {g: tuple(c.cardinality for c in getattr(self.spec, g).categorical) for g in GROUPS}
        return Layout(num, cat, schema.list_length, len(schema.objectives), schema.position_free)

    def encode(self, request: Request, user: FeatureColumns, items: FeatureColumns) -> Encoded:
        """Arrays of one request; raises FeatureError when rows or declared columns are missing."""
        C = len(request.candidate_ids)
        if items.rows != C or user.rows != 1:
            raise FeatureError(f"{items.rows} item rows and {user.rows} user rows for {C} candidates and one user")
        return {
            "item_num_CF": self._entities("item", items),
            "item_cat_CF": self._categorical("item", items.values, C),
            "prior_num_CF": self._prior(request, user, C),
            "prior_cat_CF": self._categorical("prior", request.candidate_features, C),
            "user_num_F": self._entities("user", user)[0],
            "user_cat_F": self._categorical("user", user.values, 1)[0],
            "context_num_F": self._context(request)[0],
            "context_cat_F": self._categorical("context", {k: [v] for k, v in request.context.items()}, 1)[0],
            "prior_rank_C": np.arange(C, dtype=np.int64),
        }

    def _entities(self, group: str, columns: FeatureColumns) -> np.ndarray:
        """float32 (R, F) of users or items: their numeric columns, and last whether every value is missing."""
        out = np.empty((columns.rows, self._layout.num[group]), np.float32)
        out[:, -1] = _absent(columns, self._numeric[group].fill(columns.values, out))
        return out

    def _prior(self, request: Request, user: FeatureColumns, C: int) -> np.ndarray:
        """float32 (C, F): what only the request knows of a candidate, and its cross features."""
        schema, ids = self.schema, request.candidate_ids
        out = np.empty((C, self._layout.num["prior"]), np.float32)
        columns = request_only_columns(schema, request)
        self._numeric["prior"].fill(columns, out)
        parts = [cross.prior_rank_features(C, schema.max_candidates)]
        in_list = [*schema.scores, *(f.name for f in schema.candidate_features if f.kind == "numeric")]
        within = [cross.in_list_features(columns[name]) for name in in_list]
        parts += within
        parts += [
            cross.sequence_features(ids, user.values[f.name][0])
            for f in schema.user.features
            if f.kind == "id_sequence"
        ]
        if schema.recent_event_types:
            parts.append(
                cross.recent_event_features(
                    ids, request.recent_events, schema.recent_event_types, request.event_timestamp_us
                )
            )
        if schema.recent_event_types and self.spec.format_version >= 2:
            last = cross.last_touched(ids, request.recent_events)
            parts.append(cross.near_last_features(C, last))
            parts += [cross.value_to_last_features(part, last) for part in within]
        at = self._numeric["prior"].width
        for part in parts:
            out[:, at : at + part.shape[1]] = part
            at += part.shape[1]
        return out

    def _context(self, request: Request) -> np.ndarray:
        """float32 (1, F): numeric context, and how much the user just did."""
        out = np.empty((1, self._layout.num["context"]), np.float32)
        columns = {c.name: as_float([request.context.get(c.name)]) for c in self.spec.context.numeric}
        self._numeric["context"].fill(columns, out)
        out[:, -1] = np.log1p(len(request.recent_events))
        return out

    def _categorical(self, group: str, values: Any, rows: int) -> np.ndarray:
        """int64 (R, columns) of vocabulary indices."""
        lookups = self._lookups[group]
        out = np.zeros((rows, len(lookups)), np.int64)
        for j, (name, lookup) in enumerate(lookups):
            present = values.get(name)
            if present is not None:
                # Indices of known values are 2 and more, so `or` falls through for anything that is not in the table.
                out[:, j] = [MISSING if v is None else lookup.get(v) or lookup.get(str(v), UNKNOWN) for v in present]
        return out


def request_only_columns(schema: DataSchema, request: Request) -> dict[str, np.ndarray]:
    """Numeric columns only the request carries: scores and candidate features, float32 (C,), NaN where absent."""
    absent = np.full(len(request.candidate_ids), np.nan, np.float32)
    out: dict[str, np.ndarray] = {}
    for name in schema.scores:
        out[name] = as_float(request.scores[name]) if request.scores.get(name) is not None else absent
    for feature in schema.candidate_features:
        if feature.kind == "numeric":
            values = request.candidate_features.get(feature.name)
            out[feature.name] = absent if values is None else as_float(values)
    return out


def load_encoder(path: Path) -> Encoder:
    """Read `encoder.json`; raises BundleError when it isn't one."""
    try:
        return Encoder(EncoderSpec.model_validate_json(path.read_text()))
    except ValidationError as error:
        raise BundleError(f"{path} is not a readable encoder: {explain(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not a readable encoder: {error}") from error


def save_encoder(encoder: Encoder, path: Path) -> None:
    """Write `encoder.json`."""
    write_text(path, encoder.to_json())


def _absent(columns: FeatureColumns, no_number_R: np.ndarray) -> np.ndarray:
    """bool (R,): every value of the entity is missing; `no_number_R`: those of the encoded numeric columns are."""
    absent = no_number_R
    for values in columns.values.values():
        if not absent.any():
            break
        if isinstance(values, np.ndarray):
            absent = absent & np.isnan(values.reshape(columns.rows, -1)).all(axis=1)
        else:
            absent = absent & np.array([v is None for v in values], bool)
    return absent
