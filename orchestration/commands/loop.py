"""`degre collect` and `degre forget`: served lists and feedback on their way back to training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from degre_prod.config import Settings

Dataset = Annotated[Path, typer.Argument(help="data set folder (schema.yaml)", exists=True, file_okay=False)]
Redis = Annotated[str | None, typer.Option(help="Redis URL; default: the configured one")]
Config = Annotated[Path | None, typer.Option(help="configuration file (YAML)")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document last")]


def collect(
    dataset: Dataset,
    redis: Redis = None,
    follow: Annotated[bool, typer.Option(help="keep running, one pass every collect.every_seconds")] = False,
    flush: Annotated[bool, typer.Option(help="settle everything there is, without waiting for windows")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Join served lists with their feedback and write them into DATASET/collected as impression log.

    Example: degre collect runs/shop/data --redis redis://127.0.0.1:6379 --follow
    """
    import json
    import time
    from dataclasses import asdict

    from redis import Redis as Client
    from redis import RedisError
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from degre_prod.config import load_settings
    from degre_prod.errors import ServiceError
    from orchestration.collect.collector import FOLDER, collected
    from orchestration.collect.collector import collect as one_pass

    settings = load_settings(config)
    url = redis_url(redis, settings)
    lists = TextColumn("{task.completed:,} lists written")
    with Client.from_url(url) as client, Progress(lists, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("collect", total=None)
        while True:
            try:
                one_pass(client, dataset, settings.collect, flush=flush, done=lambda count: bar.advance(task, count))
                accounts = collected(client, dataset / FOLDER)
            except RedisError as error:
                if not follow:
                    raise ServiceError(f"Redis does not answer: {type(error).__name__}: {error}") from error
                bar.console.print(f"Redis does not answer ({type(error).__name__}); trying again")
            if not follow:
                break
            time.sleep(settings.collect.every_seconds)
    counts = accounts.counts
    typer.echo(
        f"{dataset / FOLDER}: {counts.served:,} lists ({counts.confirmed:,} confirmed) in {accounts.files} files; feedback: "
        f"{counts.joined:,} joined, {counts.late:,} late, {counts.orphaned:,} orphaned, {counts.duplicated:,} duplicated; "
        f"{counts.rejected:,} entries rejected; "
        f"waiting: {accounts.waiting_served:,} lists, {accounts.waiting_feedback:,} deliveries",
        err=True,
    )
    if as_json:
        typer.echo(json.dumps(asdict(accounts)))


def forget(
    dataset: Dataset,
    user: Annotated[str, typer.Option(help="user id")],
    redis: Redis = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Erase a user from streams, logs, features and cache, and record that it was done.

    Example: degre forget runs/shop/data --user 4711 --redis redis://127.0.0.1:6379
    """
    import json
    import re
    from dataclasses import asdict
    from datetime import UTC, datetime

    from redis import Redis as Client
    from redis import RedisError

    from degre_prod.config import load_settings
    from degre_prod.errors import DataError, ServiceError
    from degre_prod.schema import load_schema
    from orchestration.collect.forget import RECORD
    from orchestration.collect.forget import forget as erase

    integers = load_schema(dataset).id_type == "int64"
    if integers and not re.fullmatch(r"-?[0-9]{1,18}", user):
        raise DataError(f"user ids of this data set are integers, not {user!r}")
    try:
        with Client.from_url(redis_url(redis, load_settings(config))) as client:
            found = erase(client, dataset, int(user) if integers else user, datetime.now(UTC))
    except RedisError as error:
        raise ServiceError(f"Redis does not answer: {type(error).__name__}: {error}") from error
    typer.echo(f"erased; recorded in {dataset / RECORD}", err=True)
    typer.echo(json.dumps(asdict(found)) if as_json else f"{asdict(found)}")


def redis_url(given: str | None, settings: Settings) -> str:
    """The URL given, else the configured one; raises ConfigurationError when there is neither."""
    from degre_prod.errors import ConfigurationError

    if given:
        return given
    if settings.redis.url is None:
        raise ConfigurationError("which Redis? give --redis redis://127.0.0.1:6379, or set redis.url")
    return settings.redis.url.get_secret_value()
