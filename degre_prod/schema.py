"""The data set's `schema.yaml`: which columns exist, of which kind, and how lists are judged.

Declared once: the feature repository builds its views from it, the encoder reads it, and a copy travels in the bundle.

A data set is a folder:

    schema.yaml               this file
    impressions.parquet       one row a request (degre_prod.records)
    user_features.parquet     user_id, event_timestamp, created_timestamp, one column a feature
    item_features.parquet     item_id, event_timestamp, created_timestamp, one column a feature

Numeric columns are float32, vectors list<float32>, categorical columns strings, id sequences list of ids, so that the
offline and the online store give bit-equal values.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from degre_prod.constraints.spec import StandingConstraints
from degre_prod.errors import SchemaError, explain

Kind = Literal["numeric", "categorical", "vector", "id_sequence"]
IdType = Literal["int64", "string"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Feature(_Frozen):
    """One column. `size` is the length of a vector; `max_length` bounds an id sequence (newest id first)."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    kind: Kind
    transform: Literal["standard", "log1p"] = "standard"
    size: int | None = Field(None, ge=1)
    max_length: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _sizes(self) -> Feature:
        if (self.kind == "vector") != (self.size is not None):
            raise ValueError(f"feature {self.name}: `size` belongs to vectors, and every vector needs it")
        if (self.kind == "id_sequence") != (self.max_length is not None):
            raise ValueError(f"feature {self.name}: `max_length` belongs to id sequences, and every one needs it")
        if self.transform != "standard" and self.kind != "numeric":
            raise ValueError(f"feature {self.name}: `transform` is for numeric features")
        return self


class FeatureTable(_Frozen):
    """A feature table of users or items. A value older than `ttl_seconds` at request time counts as missing."""

    features: tuple[Feature, ...]
    ttl_seconds: int | None = Field(None, ge=1)


class Objective(_Frozen):
    """A feedback column. `slot_weights` (w_t, one per slot, default ones) weigh increments, never counts.

    `at_most_one`: a list earns this feedback once at most (one click-out), so r_{t,k≥1} = 0.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    weight: float = Field(1.0, ge=0)
    slot_weights: tuple[float, ...] | None = None
    at_most_one: bool = False


class DataSchema(_Frozen):
    """The whole of schema.yaml."""

    format_version: Literal[1] = 1
    name: str
    id_type: IdType
    list_length: int = Field(ge=1, description="L: slots the reranker fills")
    shown_length: int | None = Field(None, ge=1, description="longest logged list; L when absent")
    max_candidates: int = Field(ge=1)
    objectives: tuple[Objective, ...] = Field(min_length=1)
    user: FeatureTable
    item: FeatureTable
    context: tuple[Feature, ...] = ()
    scores: tuple[str, ...] = ()
    candidate_features: tuple[Feature, ...] = ()
    recent_event_types: tuple[str, ...] = ()
    position_free: bool = Field(
        False,
        description="the click follows the item, whatever its slot: train on random permutations of the shown list",
    )
    validation_start: datetime | None = None
    test_start: datetime | None = None
    constraints: StandingConstraints = Field(
        StandingConstraints(), description="hold in mining, targets, training and serving alike"
    )

    @property
    def logged_length(self) -> int:
        """Longest list the log may show."""
        return self.shown_length or self.list_length

    def slot_weights_OL(self) -> tuple[tuple[float, ...], ...]:  # noqa: N802 - axis letters
        """Slot weights w_{o,t} of shape (O, L)."""
        return tuple(o.slot_weights or (1.0,) * self.list_length for o in self.objectives)

    @model_validator(mode="after")
    def _consistent(self) -> DataSchema:
        for label, names in (
            ("user features", [f.name for f in self.user.features]),
            ("item features", [f.name for f in self.item.features]),
            ("context", [f.name for f in self.context]),
            ("scores and candidate features", [*self.scores, *(f.name for f in self.candidate_features)]),
            ("objectives", [o.name for o in self.objectives]),
            ("recent event types", list(self.recent_event_types)),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{label}: declared twice: {', '.join(twice)}")
        for feature in (*self.context, *self.candidate_features):
            if feature.kind not in ("numeric", "categorical"):
                raise ValueError(f"{feature.name}: context and candidate features are numeric or categorical")
        if self.list_length > self.max_candidates:
            raise ValueError(f"list_length {self.list_length} is longer than max_candidates {self.max_candidates}")
        for o in self.objectives:
            if o.slot_weights is not None and len(o.slot_weights) != self.list_length:
                raise ValueError(f"objective {o.name}: {len(o.slot_weights)} slot weights for {self.list_length} slots")
        for moment in (self.validation_start, self.test_start):
            if moment is not None and moment.tzinfo is None:
                raise ValueError("validation_start and test_start need a time zone, e.g. 2026-01-01T00:00:00Z")
        if (self.validation_start is None) != (self.test_start is None):
            raise ValueError("validation_start and test_start go together: give both, or neither for shares of the log")
        if self.validation_start and self.test_start and self.validation_start > self.test_start:
            raise ValueError("validation_start lies after test_start")
        return self

    @model_validator(mode="after")
    def _constraints_fit(self) -> DataSchema:
        item, own = (
            {f.name for f in features if f.kind == "categorical"}
            for features in (self.item.features, self.candidate_features)
        )
        for name in self.constraints.columns:
            if name in item and name in own:
                raise ValueError(f"constraints: {name} is an item feature and a candidate feature; rename one of them")
            if name not in item | own:
                known = ", ".join(sorted(item | own)) or "none is declared"
                raise ValueError(f"constraints: {name} is no categorical feature of items or candidates ({known})")
        if sum_of := [
            f"{by} ({due})"
            for by in self.constraints.columns
            if (due := sum(q.min for q in self.constraints.quotas if q.by == by)) > self.list_length
        ]:
            raise ValueError(f"constraints: quotas demand more items than a list has slots: {', '.join(sum_of)}")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_constraints(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No constraints are left out: such a schema keeps the text and the hash it had before there were any."""
        out: dict[str, Any] = handler(self)
        if not self.constraints:
            out.pop("constraints", None)
        return out

    def to_yaml(self) -> str:
        """YAML text that `load_schema` reads back to an equal schema."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=False), sort_keys=False)

    def digest(self) -> str:
        """sha256 of the canonical JSON form."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def parse_schema(text: str, *, origin: str = "schema.yaml") -> DataSchema:
    """Parse schema.yaml text; raises SchemaError naming the keys at fault."""
    try:
        return DataSchema.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise SchemaError(f"{origin}: {explain(error)}") from None
    except yaml.YAMLError as error:
        raise SchemaError(f"{origin} is not YAML: {' '.join(str(error).split())}") from None


def load_schema(path: Path) -> DataSchema:
    """Read a data set's schema; `path` is the data set folder or the file itself."""
    file = path / "schema.yaml" if path.is_dir() else path
    if not file.is_file():
        raise SchemaError(f"no schema.yaml at {file}; `degre data convert` and `degre data simulate` write one")
    return parse_schema(file.read_text(), origin=str(file))
