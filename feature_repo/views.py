"""Feast definitions from a data set's schema.yaml: two entities, two parquet sources, two views, one service.

Reads the schema as a plain mapping, so that this package stands alone and a serving replica can build the same views from
the copy in its bundle, without a registry.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Any

import yaml
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Array, FeastType, Float32, Int64, String

USER_VIEW = "user_features"
ITEM_VIEW = "item_features"
SERVICE = "rerank_v1"

# Names that Feast's point-in-time join uses for itself; it also drops every column that ends in "_y".
_TAKEN = {
    "event_timestamp",
    "created_timestamp",
    "event_expire_timestamp",
    "entity_row_id",
    "rn",
    "row",
    "user_id",
    "item_id",
}

_DAY = 86_400  # seconds


@dataclass(frozen=True)
class Definitions:
    """Everything `FeatureStore.apply` needs, and the views by role."""

    user: Entity
    item: Entity
    user_view: FeatureView
    item_view: FeatureView
    service: FeatureService

    def objects(self) -> list[Any]:
        """All of it, in the order Feast registers them."""
        return [self.user, self.item, self.user_view, self.item_view, self.service]


def build(schema: Mapping[str, Any], folder: str | Path = "") -> Definitions:
    """Definitions for a parsed schema.yaml whose parquet files lie in `folder` (absolute; unused for online reads).

    Raises ValueError for a table without features, a name that Feast keeps for itself, or a ttl it cannot express.
    """
    id_type = schema["id_type"]
    user = _entity("user", id_type)
    item = _entity("item", id_type)
    user_view = _view(USER_VIEW, user, schema["user"], id_type, Path(folder))
    item_view = _view(ITEM_VIEW, item, schema["item"], id_type, Path(folder))
    service = FeatureService(name=SERVICE, features=[user_view, item_view])
    return Definitions(user, item, user_view, item_view, service)


def repo_config(registry: str, connection: str, repo_path: Path | None = None) -> RepoConfig:
    """feature_store.yaml with its two variables filled in; opens nothing.

    `registry` is an SQLAlchemy URL, `connection` a Feast Redis connection string (`host:port,db=0`).
    """
    variables = {"FEATURES_REGISTRY": registry, "FEATURES_REDIS": connection}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(part) for key, part in value.items()}
        return Template(value).substitute(variables) if isinstance(value, str) else value

    settings = yaml.safe_load(Path(__file__).with_name("feature_store.yaml").read_text())
    # Feast advises on every start that a cached registry may show the state "materialising" for too long, which our
    # settings make harmless.
    logger = logging.getLogger("feast.repo_config")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        config = RepoConfig(**{key: filled(value) for key, value in settings.items()}, repo_path=repo_path)
        _ = config.registry  # parsed, and advised on, at its first use
        return config
    finally:
        logger.setLevel(level)


def _entity(name: str, id_type: str) -> Entity:
    value_type = ValueType.INT64 if id_type == "int64" else ValueType.STRING
    return Entity(name=name, join_keys=[f"{name}_id"], value_type=value_type)


def _view(name: str, entity: Entity, table: Mapping[str, Any], id_type: str, folder: Path) -> FeatureView:
    features = table.get("features") or ()
    if not features:
        raise ValueError(f"schema.yaml declares no {entity.name} features; a feature view needs at least one")
    for feature in features:
        if feature["name"] in _TAKEN or feature["name"].endswith("_y"):
            raise ValueError(
                f"{entity.name} feature {feature['name']}: Feast's point-in-time join keeps this name for itself "
                f"(names ending in _y, and {', '.join(sorted(_TAKEN))}); rename the column"
            )
    ttl = table.get("ttl_seconds")
    if ttl is not None and ttl > _DAY and ttl % _DAY:
        # ibis, under Feast's DuckDB store, has no interval of days and seconds together.
        raise ValueError(
            f"{entity.name}.ttl_seconds {ttl}: at most a day, or whole days ({ttl // _DAY * _DAY}), is needed"
        )
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=None if ttl is None else timedelta(seconds=ttl),
        schema=[
            Field(name=entity.join_key, dtype=_id(id_type)),
            *(Field(name=feature["name"], dtype=_dtype(feature["kind"], id_type)) for feature in features),
        ],
        source=FileSource(
            name=f"{name}_source",
            path=str(folder / f"{name}.parquet"),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        ),
    )


def _id(id_type: str) -> FeastType:
    return Int64 if id_type == "int64" else String


def _dtype(kind: str, id_type: str) -> FeastType:
    return {
        "numeric": Float32,
        "categorical": String,
        "vector": Array(Float32),
        "id_sequence": Array(_id(id_type)),
    }[kind]
