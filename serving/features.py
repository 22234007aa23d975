"""Feature columns of one request, read from Feast's Redis online store without Feast and without a registry.

One round trip: the feature epoch, the user, and those items that the replica's own table does not hold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from degre_prod.config import ServingConfig
from degre_prod.errors import ConfigurationError, FeatureError
from degre_prod.requests import FeatureColumns, Id
from degre_prod.schema import DataSchema
from serving.cache import EPOCH_KEY
from serving.feature_cache import ItemTable
from serving.feature_rows import RowLayout, Rows
from serving.feature_wire import entity_keys, hash_fields
from serving.redis_client import RedisFailure, request_path_client

Reply = list[bytes | None]


@dataclass(frozen=True, slots=True)
class FeatureRead:
    """Columns of the user (one row) and of the items (one row each, in the order asked), and what was missing.

    Unknown: never written. Stale: older than the table's ttl. Both have every value missing. `cached_items`: how many came
    from the replica's own table.
    """

    user: FeatureColumns
    items: FeatureColumns
    unknown_user: bool
    stale_user: bool
    unknown_items: int
    stale_items: int
    cached_items: int = 0


class FeatureReader:
    """Reads feature columns of a request. Safe to share among threads.

    `timeout_ms` bounds connecting and reading; nothing is tried twice. With `item_cache_ttl_seconds` > 0 item values stay
    in the replica: one pushed to the store may be served that much later, a materialised one is served at once.
    """

    def __init__(
        self,
        schema: DataSchema,
        redis_url: str,
        timeout_ms: float,
        *,
        item_cache_ttl_seconds: float = 0.0,
        item_cache_items: int = 100_000,
    ) -> None:
        self._integers = schema.id_type == "int64"
        self._user, self._item = RowLayout(schema.user), RowLayout(schema.item)
        self._user_fields = _packed(hash_fields("user_features", self._user.names))
        self._item_fields = _packed(hash_fields("item_features", self._item.names))
        self._epoch_command = _command(2) + _packed([b"GET", EPOCH_KEY.encode()])
        self._client = request_path_client(redis_url, timeout_ms)
        self.table: ItemTable | None = None
        if item_cache_ttl_seconds > 0:
            self.table = ItemTable(
                self._item.width,
                self._item.object_count,
                capacity=item_cache_items,
                ttl_seconds=item_cache_ttl_seconds,
            )

    def read(self, user_id: Id, item_ids: Sequence[Id], now_us: int) -> FeatureRead:
        """Columns as of `now_us` (µs since 1970 UTC, the request's own time); ids may repeat.

        A value is stale when it is more than ttl older than `now_us`: exactly ttl old is fresh, as in the offline join.
        A value *after* `now_us` is returned as it is: online it is a clock running ahead by a little and the best there
        is. A replay that must not see it feeds the store with `OnlineFeed`.

        Raises FeatureError when Redis does not answer in time or answers nonsense.
        """
        if self.table is None:
            _, user_rows, item_rows = self._fetch([user_id], item_ids)
            cached = 0
        else:
            user_rows, item_rows, cached = self._through_table(self.table, user_id, item_ids)
        user, unknown_user, stale_user = self._user.columns(user_rows, now_us)
        items, unknown_items, stale_items = self._item.columns(item_rows, now_us)
        return FeatureRead(user, items, unknown_user > 0, stale_user > 0, unknown_items, stale_items, cached)

    def ping(self) -> None:
        """Raises one of RedisFailure when Redis does not answer in time."""
        self._client.ping()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _through_table(self, table: ItemTable, user_id: Id, item_ids: Sequence[Id]) -> tuple[Rows, Rows, int]:
        found = table.find(item_ids)
        wanted = [item_ids[position] for position in found.missing]
        read_at = table.now()  # before the read: an entry is never younger than it seems
        epoch, user, fresh = self._fetch([user_id], wanted)
        if epoch != found.epoch and len(wanted) < len(item_ids):
            # A materialisation came between: what the table gave may be older than it.
            read_at = table.now()
            epoch, _, rows = self._fetch([], item_ids)
            table.keep(item_ids, rows, epoch, read_at)
            return user, rows, 0
        if wanted:
            table.keep(wanted, fresh, epoch, read_at)
            found.rows.put(found.missing, fresh)
        return user, found.rows, len(item_ids) - len(wanted)

    def _fetch(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[bytes | None, Rows, Rows]:
        """The feature epoch, read first, and the rows of these users and items, in one round trip."""
        user_keys = entity_keys("user", users, integers=self._integers)
        item_keys = entity_keys("item", items, integers=self._integers)
        commands = [
            self._epoch_command,
            *_hmget(user_keys, self._user_fields, len(self._user.names) + 1),
            *_hmget(item_keys, self._item_fields, len(self._item.names) + 1),
        ]
        epoch, *replies = self._round_trip(b"".join(commands), 1 + len(users) + len(items))
        return epoch, self._user.decode(replies[: len(users)]), self._item.decode(replies[len(users) :])

    def _round_trip(self, commands: bytes, replies: int) -> list[Any]:
        """Send packed commands and read that many replies; redis-py's own pipeline costs more than the reading itself."""
        pool = self._client.connection_pool
        try:
            connection = pool.get_connection()
            try:
                connection.send_packed_command([commands])
                return [connection.read_response() for _ in range(replies)]
            except BaseException:
                connection.disconnect()  # replies may be under way: nobody else must read them
                raise
            finally:
                pool.release(connection)
        except RedisFailure as error:
            raise FeatureError(
                f"Redis did not give user_features and item_features: {type(error).__name__}: {error}"
            ) from error


def open_reader(schema: DataSchema, redis_url: str, serving: ServingConfig) -> FeatureReader:
    """The reader a replica uses. Replays (`clock: request`) bypass the item table: their store changes between requests."""
    ttl = 0.0 if serving.clock == "request" else serving.item_cache_ttl_seconds
    return FeatureReader(
        schema,
        redis_url,
        serving.redis_timeout_ms,
        item_cache_ttl_seconds=ttl,
        item_cache_items=serving.item_cache_items,
    )


def feast_connection(redis_url: str) -> str:
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
    if wrong := sorted(name for name, value in options.items() if "," in str(value)):
        raise ConfigurationError(f"Redis URL: Feast's connection string allows no comma in {', '.join(wrong)}")
    return ",".join([f"{host}:{parts.port or 6379}", *(f"{name}={value}" for name, value in options.items())])


def _hmget(keys: Sequence[bytes], packed_fields: bytes, field_count: int) -> list[bytes]:
    head = _command(2 + field_count) + _packed([b"HMGET"])
    return [b"%b$%d\r\n%b\r\n%b" % (head, len(key), key, packed_fields) for key in keys]


def _command(words: int) -> bytes:
    return b"*%d\r\n" % words


def _packed(words: Sequence[bytes]) -> bytes:
    return b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
