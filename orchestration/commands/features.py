"""`degre features`: register a data set's features and bring them online."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Register a data set's features and bring them online.", no_args_is_help=True)

Dataset = Annotated[Path, typer.Argument(help="data set folder with schema.yaml and the feature tables")]
Registry = Annotated[
    str | None,
    typer.Option(
        help="registry file, or an SQLAlchemy URL such as postgresql+psycopg://… [default: DATASET/registry.db]"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document as the last line")]


@app.command("apply")
def apply_(dataset: Dataset, registry: Registry = None, as_json: Json = False) -> None:
    """Register entities, sources, views and the service rerank_v1.

    Example: degre features apply runs/data
    """
    from orchestration.features.store import apply, default_registry, definitions, open_store

    where = registry or default_registry(dataset)
    built = definitions(dataset)
    apply(open_store(dataset, where), built)
    done = {
        "service": built.service.name,
        "registry": str(where),
        "user_features": len(built.user_view.features),
        "item_features": len(built.item_view.features),
    }
    typer.echo(
        json.dumps(done)
        if as_json
        else f"{done['service']}: {done['user_features']} user and {done['item_features']} item features in {where}"
    )


@app.command("materialize")
def materialize_(
    dataset: Dataset,
    redis: Annotated[
        str | None,
        typer.Option(envvar="DEGRE_REDIS__URL", show_envvar=True, help="redis://[user:password@]host:port/db"),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="ISO 8601 moment with time zone, not in the future [default: now]")
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Write the latest value of every feature into Redis, from the beginning of the tables up to a moment.

    Example: degre features materialize runs/data --redis redis://127.0.0.1:6379/0
    """
    from degre_prod.errors import ConfigurationError
    from orchestration.features.materialize import materialize
    from orchestration.features.store import default_registry

    if not redis:
        raise ConfigurationError("no Redis to write to: give --redis URL or set DEGRE_REDIS__URL")
    try:
        moment = datetime.fromisoformat(until) if until else None
    except ValueError:
        raise ConfigurationError(f"--until {until}: an ISO 8601 moment is needed, e.g. 2026-01-31T00:00:00Z") from None
    epoch = materialize(dataset, registry or default_registry(dataset), redis, moment)
    typer.echo(json.dumps({"feature_epoch": epoch}) if as_json else f"features are online; feature epoch {epoch}")
