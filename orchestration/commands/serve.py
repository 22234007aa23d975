"""`degre serve` and `degre rerank`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

app = typer.Typer(help="Serve a bundle over HTTP, and ask a service.")


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="bundle folder", exists=True, file_okay=False)],
    host: Annotated[str | None, typer.Option(help="address to bind; beyond 127.0.0.1 tokens are needed")] = None,
    port: Annotated[int | None, typer.Option(help="port; 0 picks a free one")] = None,
    redis: Annotated[
        str | None, typer.Option(help="Redis URL; default: the configured one, else a private one")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="data set whose feature tables are materialised into Redis first", exists=True, file_okay=False
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="configuration file (YAML)")] = None,
) -> None:
    """Serve a bundle in the foreground until Ctrl-C.

    Example: degre serve runs/mixed-large/bundle --features runs/mixed-large/data
    """
    from degre_prod.config import load_settings
    from orchestration.features.materialize import materialize
    from orchestration.features.store import default_registry
    from orchestration.redis_server import running_redis
    from serving.deploy import running_service

    given = {"host": host, "port": port}
    settings = load_settings(config, {"serving": {k: v for k, v in given.items() if v is not None}})
    url = redis or (settings.redis.url.get_secret_value() if settings.redis.url else None)
    _stop_once()
    try:
        with running_redis(url) as redis_url:
            if features is not None:
                materialize(features, default_registry(features), redis_url)
            elif url is None:
                typer.echo("A private Redis and no --features: no user or item has any.", err=True)
            typer.echo("Starting Ray Serve, about 15 seconds …", err=True)
            with running_service(bundle, settings, redis_url) as base_url:
                _stop_once()  # Ray has put a handler of its own in place
                typer.echo(f"Ready: {base_url}  (Ctrl-C stops)")
                while True:
                    signal.pause()
    except KeyboardInterrupt:
        typer.echo("Stopped.", err=True)


@app.command()
def rerank(
    url: Annotated[str, typer.Option(help="base URL of the service")] = "http://127.0.0.1:8000",
    file: Annotated[Path | None, typer.Option(help="request as JSON; standard input when absent")] = None,
    config: Annotated[Path | None, typer.Option(help="configuration file, for the first of serving.tokens")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the answer as one JSON document")] = False,
) -> None:
    """Send one request and print the answer, the request's own order when the service is away.

    Example: degre rerank --url http://127.0.0.1:8000 --file request.json
    """
    from pydantic import ValidationError

    from degre_prod.config import load_settings
    from degre_prod.errors import DataError
    from serving.client import RerankClient
    from serving.problems import from_validation
    from serving.protocol import RerankRequest

    try:
        text = file.read_text() if file is not None else sys.stdin.read()
        request = RerankRequest.model_validate_json(text)
    except OSError as error:
        raise DataError(f"cannot read the request: {error}", file=str(file)) from error
    except ValidationError as error:
        raise DataError(from_validation(error, RerankRequest).detail, file=str(file or "standard input")) from None
    tokens = load_settings(config).serving.tokens
    with RerankClient(url, token=tokens[0].get_secret_value() if tokens else None) as client:
        answer = client.rerank(request)
    if as_json:
        typer.echo(answer.model_dump_json(exclude_none=True))
        return
    typer.echo(f"source {answer.source}  bundle {answer.bundle[:12] or '-'}  request {answer.request_id}")
    for reason in answer.degraded:
        typer.echo(f"degraded: {reason}")
    for item in answer.items:
        typer.echo(
            f"{item.position:4d}  {item.id}" + (f"  margin {item.margin:.4f}" if item.margin is not None else "")
        )


def _stop_once() -> None:
    """Ctrl-C and SIGTERM interrupt once; more of them while stopping would leave processes behind."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
