"""Bringing the latest feature values online: a full materialisation into Redis by Feast's own engine."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from degre_prod.errors import FeatureError
from orchestration.features.store import apply, definitions, open_store

EPOCH_KEY = "degre:feature_epoch"


def materialize(
    dataset: Path,
    registry: Path | str,
    redis_url: str,
    until: datetime | None = None,
    *,
    progress: bool = True,
) -> int:
    """Write the latest row of every user and item up to `until` (now when absent); returns the new feature epoch.

    Always from the beginning: an incremental run would miss rows that arrived late. Redis keeps what it has when that is
    as new or newer, so running again is harmless, an older `until` takes nothing back, and a correction needs a newer
    event_timestamp to come through. The definitions are registered first.

    Raises FeatureError for an `until` without time zone or in the future (Feast's later runs would start there), and when
    the tables or Redis fail.
    """
    from redis import Redis, RedisError

    now = datetime.now(UTC)
    until = until or now
    if until.tzinfo is None or until > now:
        raise FeatureError(f"--until {until.isoformat()}: a moment with time zone, not in the future, is needed")
    store = open_store(dataset, registry, redis_url)
    built = definitions(dataset)
    try:
        with (
            redirect_stdout(io.StringIO()),  # Feast prints a banner; standard output is for results
            Progress(console=Console(stderr=True), disable=not progress) as bar,
        ):
            apply(store, built)
            task = bar.add_task("materialise", total=2)
            for view in (built.user_view, built.item_view):
                store.materialize(datetime(1970, 1, 1, tzinfo=UTC), until, feature_views=[view.name])
                bar.advance(task)
        with Redis.from_url(redis_url) as client:
            return int(client.incr(EPOCH_KEY))
    except RedisError as error:
        raise FeatureError(f"cannot materialise into Redis: {type(error).__name__}: {error}") from error
