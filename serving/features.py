"""Feature columns of one request, read from Feast's Redis online store without a registry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np

from degre_prod.errors import ConfigurationError, FeatureError
from degre_prod.requests import FeatureColumns, Id
from degre_prod.schema import DataSchema, Feature, FeatureTable

if TYPE_CHECKING:
    from feast import FeatureView

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Row = Mapping[str, Any] | None  # feature name to protobuf value; None = every value missing


@dataclass(frozen=True, slots=True)
class FeatureRead:
    """Columns of the user (one row) and of the items (one row each, in the order asked), and what was missing.

    Unknown: never written. Stale: older than the table's ttl. Both have every value missing.
    """

    user: FeatureColumns
    items: FeatureColumns
    unknown_user: bool
    stale_user: bool
    unknown_items: int
    stale_items: int


class FeatureReader:
    """Reads feature columns of a request. Safe to share among threads; the first one made imports Feast (seconds).

    `timeout_ms` bounds connecting and each of the two reads (user, items); nothing is tried twice.
    """

    def __init__(self, schema: DataSchema, redis_url: str, timeout_ms: float) -> None:
        from feast.infra.online_stores.redis import RedisOnlineStore
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        from feature_repo.views import build, repo_config

        definitions = build(schema.model_dump(mode="json"))
        self._schema = schema
        self._user_view, self._item_view = definitions.user_view, definitions.item_view
        connection = feast_connection(redis_url, timeout_ms=timeout_ms)
        # No FeatureStore is made from this, so the registry it names is never opened.
        self._config = repo_config(registry="sqlite://", connection=connection)
        self._store = RedisOnlineStore()
        # Feast's connection string cannot switch retries off; with them a dead Redis costs seconds, not milliseconds.
        self._client = self._store._get_client(self._config.online_store)
        self._client.set_retry(Retry(NoBackoff(), 0))

    def read(self, user_id: Id, item_ids: Sequence[Id], now_us: int) -> FeatureRead:
        """Columns as of `now_us` (µs since 1970 UTC, the request's own time); ids may repeat.

        A value is stale when it is more than ttl older than `now_us`: exactly ttl old is fresh, as in the offline join.
        A value *after* `now_us` is returned as it is: online it is a clock running ahead by a little and the best there
        is. A replay that must not see it feeds the store with `OnlineFeed`.

        Raises FeatureError when Redis does not answer in time or answers nonsense.
        """
        users = self._rows(self._user_view, [user_id])
        items = self._rows(self._item_view, item_ids)
        user, unknown_user, stale_user = _columns(self._schema.user, users, now_us)
        columns, unknown_items, stale_items = _columns(self._schema.item, items, now_us)
        return FeatureRead(user, columns, unknown_user > 0, stale_user > 0, unknown_items, stale_items)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _rows(self, view: FeatureView, ids: Sequence[Id]) -> list[tuple[datetime | None, Row]]:
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value
        from google.protobuf.message import DecodeError
        from redis import RedisError

        join_keys = [view.entity_columns[0].name]
        integers = self._schema.id_type == "int64"
        values = [Value(int64_val=int(one)) if integers else Value(string_val=str(one)) for one in ids]
        keys = [EntityKey(join_keys=join_keys, entity_values=[value]) for value in values]
        try:
            return self._store.online_read(self._config, view, keys)
        except (RedisError, OSError) as error:
            raise FeatureError(f"Redis did not give {view.name}: {type(error).__name__}: {error}") from error
        except DecodeError as error:
            raise FeatureError(f"{view.name}: Redis holds values that Feast did not write: {error}") from error


def feast_connection(redis_url: str, *, timeout_ms: float | None = None) -> str:
    """Feast's connection string (`host:port,db=0,password="…",ssl=true`) for a redis:// or rediss:// URL.

    Query parameters pass through (`?ssl_ca_certs=/etc/ca.pem`). Raises ConfigurationError, which never repeats the
    password, for a URL that the string cannot express.
    """
    parts = urlsplit(redis_url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ConfigurationError("Redis URL: redis://[user:password@]host:port/db is needed (rediss:// for TLS)")
    host = parts.hostname
    if ":" in host:
        raise ConfigurationError(f"Redis URL: Feast cannot take the IPv6 address {host}; use a host name")
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    database = parts.path.strip("/") or options.pop("db", "0")
    if not database.isdecimal():
        raise ConfigurationError(f"Redis URL: the database must be a number, not {database!r}")
    strings = {"username": parts.username, "password": parts.password}
    # JSON strings, or Feast would read a password of digits as a number.
    options |= {name: json.dumps(unquote(value)) for name, value in strings.items() if value}
    options |= {"db": database} | ({"ssl": "true"} if parts.scheme == "rediss" else {})
    if timeout_ms is not None:
        options |= {"socket_timeout": timeout_ms / 1000, "socket_connect_timeout": timeout_ms / 1000}
    if wrong := sorted(name for name, value in options.items() if "," in str(value)):
        raise ConfigurationError(f"Redis URL: Feast's connection string allows no comma in {', '.join(wrong)}")
    return ",".join([f"{host}:{parts.port or 6379}", *(f"{name}={value}" for name, value in options.items())])


def _columns(
    table: FeatureTable, rows: Sequence[tuple[datetime | None, Row]], now_us: int
) -> tuple[FeatureColumns, int, int]:
    """Columns of R rows, how many entities were unknown and how many stale."""
    unknown = stale = 0
    usable: list[Row] = []
    for moment, values in rows:
        # Feast returns an entity it never saw as present, with nulls and the epoch for its time.
        if moment is None or moment == _EPOCH:
            unknown += 1
            usable.append(None)
        elif table.ttl_seconds is not None and now_us - _micros(moment) > table.ttl_seconds * 1_000_000:
            stale += 1
            usable.append(None)
        else:
            usable.append(values)
    columns = {feature.name: _DECODERS[feature.kind](feature, usable) for feature in table.features}
    return FeatureColumns(columns, len(usable)), unknown, stale


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _numeric(feature: Feature, rows: Sequence[Row]) -> np.ndarray:
    out = np.full(len(rows), np.nan, np.float32)
    for index, row in enumerate(rows):
        if row is not None and row[feature.name].HasField("float_val"):
            out[index] = row[feature.name].float_val
    return out


def _vector(feature: Feature, rows: Sequence[Row]) -> np.ndarray:
    out = np.full((len(rows), feature.size or 0), np.nan, np.float32)
    for index, row in enumerate(rows):
        if row is not None and row[feature.name].HasField("float_list_val"):
            values = row[feature.name].float_list_val.val
            if len(values) != feature.size:
                raise FeatureError(f"{feature.name}: a vector of {len(values)}, schema.yaml says {feature.size}")
            out[index] = values
    return out


def _categorical(feature: Feature, rows: Sequence[Row]) -> list[Any]:
    return [
        row[feature.name].string_val if row is not None and row[feature.name].HasField("string_val") else None
        for row in rows
    ]


def _id_sequence(feature: Feature, rows: Sequence[Row]) -> list[Any]:
    out: list[Any] = []
    for row in rows:
        kind = None if row is None else row[feature.name].WhichOneof("val")
        out.append(None if row is None or kind is None else list(getattr(row[feature.name], kind).val))
    return out


_DECODERS: dict[str, Callable[[Feature, Sequence[Row]], np.ndarray | list[Any]]] = {
    "numeric": _numeric,
    "vector": _vector,
    "categorical": _categorical,
    "id_sequence": _id_sequence,
}
