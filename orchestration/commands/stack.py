"""`degre stack …`: what the containers of docker-compose.yml run; `degre backup` and `degre restore`."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orchestration.commands.loop import Config, Json, Redis

app = typer.Typer(help="What the containers of docker-compose.yml run: docs/stack.md.", no_args_is_help=True)

RunFolder = Annotated[Path, typer.Argument(help="run folder", file_okay=False)]
Existing = Annotated[Path, typer.Argument(help="run folder, with its data set in data/", exists=True, file_okay=False)]
Cluster = Annotated[str, typer.Option(help="Ray's dashboard, http://HEAD:8265", envvar="RAY_ADDRESS", show_envvar=True)]


class Role(StrEnum):
    """What a Ray node is."""

    head = "head"
    worker = "worker"


@app.command()
def node(
    role: Annotated[Role, typer.Argument(help="the cluster's head, or one of its workers")],
    head: Annotated[str, typer.Option(help="host name of the head, for workers")] = "ray-head",
    cpus: Annotated[int, typer.Option(help="logical CPUs: one a replica or training worker", min=0)] = 1,
    store_mb: Annotated[int, typer.Option(help="megabytes of Ray's object store", min=80)] = 100,
    folder: Annotated[Path, typer.Option(help="for HAProxy's files; a short path")] = Path("/tmp/degre-haproxy"),
    state_in_redis: Annotated[
        bool, typer.Option(help="keep the cluster's state in Redis, so that workers outlive the head")
    ] = True,
    config: Config = None,
) -> None:
    """Start a Ray node that can serve, in the foreground.

    Example: degre stack node head
    """
    from degre_prod.config import load_settings
    from orchestration.stack.node import become_node

    settings = load_settings(config)
    become_node(role.value, settings, folder, head, cpus=cpus, store_mb=store_mb, state_in_redis=state_in_redis)


@app.command()
def bootstrap(
    run: RunFolder,
    data: Annotated[
        Path,
        typer.Option(
            help="own data set (schema.yaml and its files) to copy and learn from; simulated if there is none",
            readable=False,  # who must be able to read it is said below
        ),
    ] = Path("/data"),
    own_data: Annotated[
        str, typer.Option(help="what is mounted at --data; if given, it must be a data set", envvar="OWN_DATA")
    ] = "",
    world: Annotated[str, typer.Option(help="world to simulate without own data")] = "mixed",
    size: Annotated[str, typer.Option(help="small or large")] = "small",
    train: Annotated[int, typer.Option(help="training requests to simulate", min=1)] = 12_000,
    redis: Redis = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Data, features in Redis and a first bundle; does nothing where they are there already.

    Example: degre stack bootstrap /srv/degre/run --redis redis://127.0.0.1:6379
    """
    from contextlib import redirect_stdout

    from degre_prod.config import load_settings
    from orchestration.commands.loop import redis_url
    from orchestration.stack.bootstrap import World
    from orchestration.stack.bootstrap import bootstrap as fill

    settings = load_settings(config)
    with redirect_stdout(sys.stderr):
        document = fill(run, settings, redis_url(redis, settings), data, World(world, size, train=train), own_data)
    typer.echo(
        json.dumps(document) if as_json else f"{document['bundle']}: {', '.join(document['done']) or 'nothing to do'}"
    )


@app.command()
def deploy(
    document: Annotated[Path, typer.Argument(help="as `serve deploy` takes it, e.g. deploy/docker/application.yaml")],
    address: Cluster = "http://127.0.0.1:8265",
    follow: Annotated[
        bool, typer.Option(help="stay, and deploy it again whenever the cluster does not have it")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="the nodes' configuration file (YAML): replicas start anew when it has changed")
    ] = None,
) -> None:
    """Deploy the Serve application on the cluster, and wait until it runs or, with --follow, for ever.

    Example: degre stack deploy deploy/docker/application.yaml --address http://ray-head:8265 --follow
    """
    from orchestration.stack.application import every, keep_deployed, read_document, serve_api, with_settings

    wanted = read_document(document)
    if config is not None:
        wanted = with_settings(wanted, config)
    keep_deployed(serve_api(address), wanted, every(), until_running=not follow)


@app.command()
def nightly(
    run: Existing,
    every: Annotated[str, typer.Option(help="24h, 30m, … after the last night ended")] = "24h",
    address: Cluster = "http://127.0.0.1:8265",
    activate: Annotated[bool, typer.Option(help="let a candidate that passed every gate serve")] = True,
    config: Annotated[Path | None, typer.Option(help="configuration file (YAML), a path on the cluster's head")] = None,
) -> None:
    """Submit `degre retrain` to the cluster whenever a night is due, told by the run folder.

    Example: degre stack nightly /srv/degre/run --every 24h --address http://ray-head:8265
    """
    from orchestration.jobs.cluster import job_server
    from orchestration.retrain.schedule import parse_duration
    from orchestration.stack.nightly import due, nights, submit_night

    period = parse_duration(every)
    told = [] if config is None else ["--config", str(config)]
    words = ("retrain", str(run), *(["--activate"] if activate else []), *told)
    typer.echo(f"the next night is due {due(run, period).isoformat(timespec='seconds')}", err=True)
    for at in nights(run, period, lambda: submit_night(lambda: job_server(address), words)):
        typer.echo(f"the next night is due {at.isoformat(timespec='seconds')}", err=True)


@app.command()
def exporter(
    run: RunFolder,
    host: Annotated[str, typer.Option(help="address to bind")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port")] = 9300,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """For Prometheus: nights, gates, drift, event log and Redis at /metrics, the replicas to scrape at /targets.

    Example: degre stack exporter /srv/degre/run --redis redis://127.0.0.1:6379
    """
    from degre_prod.config import load_settings
    from orchestration.commands.loop import redis_url
    from orchestration.stack.exporter import exporter as bound

    server = bound(host, port, run, redis_url(redis, load_settings(config)))
    typer.echo(f"http://{host}:{port}/metrics and /targets", err=True)
    server.serve_forever()


def backup(
    run: Existing,
    file: Annotated[str, typer.Argument(help="tar file to write; - is standard output")],
    redis: Redis = None,
    config: Config = None,
) -> None:
    """Write the run folder and all of Redis into one file. Not while a night is under way.

    Example: degre backup runs/shop shop.tar --redis redis://127.0.0.1:6379
    """
    from redis import Redis as Client
    from redis import RedisError

    from degre_prod.artefact import written_aside
    from degre_prod.config import load_settings
    from degre_prod.errors import ServiceError
    from orchestration.commands.loop import redis_url
    from orchestration.stack.backup import back_up

    try:
        with Client.from_url(redis_url(redis, load_settings(config))) as client:
            if file == "-":
                manifest = back_up(run, client, sys.stdout.buffer)
            else:
                with written_aside(Path(file)) as aside, aside.open("wb") as out:
                    manifest = back_up(run, client, out)
    except RedisError as error:
        raise ServiceError(f"Redis does not answer: {type(error).__name__}: {error}") from error
    typer.echo(f"{file}: {len(manifest['files']) - 1} files and {manifest['keys']} keys", err=True)


def restore(
    run: RunFolder,
    file: Annotated[str, typer.Argument(help="a backup; - is standard input")],
    replace: Annotated[bool, typer.Option("--replace", help="delete what is there")] = False,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """Put a backup back into a run folder and Redis. It is read to its end and checked before anything is touched.

    Example: degre restore runs/shop shop.tar --redis redis://127.0.0.1:6379
    """
    from redis import Redis as Client
    from redis import RedisError

    from degre_prod.config import load_settings
    from degre_prod.errors import DataError, ServiceError
    from orchestration.commands.loop import redis_url
    from orchestration.stack.backup import restore as put_back

    try:
        with (
            Client.from_url(redis_url(redis, load_settings(config))) as client,
            sys.stdin.buffer if file == "-" else Path(file).open("rb") as source,
        ):
            manifest = put_back(run, client, source, replace=replace)
    except RedisError as error:
        raise ServiceError(f"Redis does not answer: {type(error).__name__}: {error}") from error
    except FileNotFoundError:
        raise DataError("no such backup", file=file) from None
    typer.echo(f"{run}: as of {manifest['made']}, {manifest['keys']} keys in Redis", err=True)
