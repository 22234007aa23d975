"""`degre rollout …`: a challenger on its way to the users, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import redis as redis_py

    from orchestration.registry import Registry
    from serving.plan import RolloutPlan
    from serving.plan_store import Author

app = typer.Typer(help="Shadow, canary, A/B: a bundle reaches the users by evidence and leaves in one command.")

Redis = Annotated[str | None, typer.Option(help="Redis URL of the service; default: the configured one")]
Config = Annotated[Path | None, typer.Option(help="configuration file (YAML)")]
Why = Annotated[str, typer.Option(help="reason, kept in the plan's history")]
By = Annotated[str, typer.Option(help="who, kept in the plan's history; default: user@host")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document last")]
RegistryFile = Annotated[
    Path | None, typer.Option("--registry", help="registry (SQLite file; MLFLOW_TRACKING_URI goes before it)")
]
Model = Annotated[str | None, typer.Option(help="name of the model in the registry; with --registry")]

ROLLED_BACK = 3  # exit code of `run`: the challenger did not make it


@app.command()
def start(
    bundle: Annotated[Path, typer.Argument(help="the challenger's folder", exists=True, file_okay=False)],
    plan: Annotated[
        Path | None, typer.Option(help="design of the experiment (YAML or JSON); default: docs/rollout.md", exists=True)
    ] = None,
    name: Annotated[str | None, typer.Option("--id", help="id of the experiment, goes before the design's")] = None,
    redis: Redis = None,
    config: Config = None,
    why: Why = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """Begin an experiment: the challenger answers in shadow, users get it stage by stage.

    Example: degre rollout start runs/2026-02-01/bundle --id ranker-2026-02-01 --why "more traffic"
    """
    from degre_prod.errors import ConfigurationError
    from orchestration.rollout import moves
    from serving.experiment import Design

    if plan is None and name is None:
        raise ConfigurationError("give the experiment an --id, or a design with one by --plan")
    if plan is None:
        design = Design.model_validate({"id": name})
    else:
        design = moves.read_design(plan, name)
    _move(lambda client, author: moves.start(client, bundle, design, author), redis, config, why, by, as_json)


@app.command()
def status(
    report: Annotated[
        Path | None,
        typer.Option(
            help="write a page with tables and plots over time, too (HTML, of the running or last experiment)"
        ),
    ] = None,
    redis: Redis = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """The plan against reality: arms, stage, what the replicas serve, what is known, what the machine waits for.

    Example: degre rollout status --report rollout.html
    """
    import json

    from orchestration.rollout.moves import connected
    from orchestration.rollout.status import as_text
    from orchestration.rollout.status import status as read

    url = _url(redis, config)
    document = connected(url, read)
    typer.echo(as_text(document), err=as_json)
    if report is not None:
        from orchestration.rollout.page import write_page

        connected(url, lambda client: write_page(client, report))
        typer.echo(f"report: {report}", err=True)
    if as_json:
        typer.echo(json.dumps(document))


@app.command()
def advance(redis: Redis = None, config: Config = None, why: Why = "", by: By = "", as_json: Json = False) -> None:
    """The next stage now, whatever the figures say.

    Example: degre rollout advance --why "checked by hand"
    """
    from orchestration.rollout import moves

    _move(moves.advance, redis, config, why, by, as_json)


@app.command()
def hold(redis: Redis = None, config: Config = None, why: Why = "", by: By = "", as_json: Json = False) -> None:
    """Stay at this stage; a breach still ends the experiment.

    Example: degre rollout hold --why "sale until Monday"
    """
    from orchestration.rollout import moves

    _move(lambda client, author: moves.hold(client, author, held=True), redis, config, why, by, as_json)


@app.command()
def resume(redis: Redis = None, config: Config = None, why: Why = "", by: By = "", as_json: Json = False) -> None:
    """Let the machine go on after `hold`.

    Example: degre rollout resume
    """
    from orchestration.rollout import moves

    _move(lambda client, author: moves.hold(client, author, held=False), redis, config, why, by, as_json)


@app.command()
def abort(redis: Redis = None, config: Config = None, why: Why = "", by: By = "", as_json: Json = False) -> None:
    """End the experiment: the champion alone serves, within seconds.

    Example: degre rollout abort --why "complaints"
    """
    from orchestration.rollout import moves

    _move(moves.abort, redis, config, why, by, as_json)


@app.command()
def promote(
    redis: Redis = None,
    config: Config = None,
    registry: RegistryFile = None,
    model: Model = None,
    why: Why = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """The challenger becomes the champion now, whatever the figures say; with a registry its aliases follow.

    Example: degre rollout promote --registry runs/registry.db --model shop
    """
    from orchestration.rollout import moves

    _move(moves.promote, redis, config, why, by, as_json, _registry(registry, model))


@app.command()
def rollback(
    redis: Redis = None,
    config: Config = None,
    registry: RegistryFile = None,
    model: Model = None,
    why: Why = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """One step back: a running experiment ends; without one the champion before the present one serves again.

    Example: degre rollout rollback --why "clicks fell since the promotion"
    """
    from orchestration.rollout import moves

    _move(moves.rollback, redis, config, why, by, as_json, _registry(registry, model))


@app.command()
def run(
    name: Annotated[
        str | None, typer.Option("--id", help="the experiment; default: the running or the last one")
    ] = None,
    until_ready: Annotated[
        bool, typer.Option(help="end, too, when everything is shown and the plan leaves the promotion to people")
    ] = False,
    look_seconds: Annotated[float, typer.Option(help="pause between two looks", min=0.05)] = 0.5,
    judge: Annotated[
        Path | None,
        typer.Option(
            help="folder of a judge (of retraining or replay): values lists made in shadow",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    redis: Redis = None,
    config: Config = None,
    registry: RegistryFile = None,
    model: Model = None,
    by: By = "controller",
    as_json: Json = False,
) -> None:
    """Guide the experiment to its end: advance when a stage's conditions hold, roll back on a breach. Exit code 3: rolled back.

    Killed and started again it goes on; several may run, one acts.

    Example: degre rollout run --registry runs/registry.db --model shop
    """
    import json
    from dataclasses import asdict
    from functools import partial

    import redis as redis_py

    from orchestration.rollout.controller import Controller
    from orchestration.rollout.judged import ListJudge

    say = partial(typer.echo, err=True)
    url = _url(redis, config)
    client = redis_py.Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=5.0)
    with client:
        values = None if judge is None else ListJudge(judge, url)
        controller = Controller(client, registry=_registry(registry, model), judge=values, by=by, say=say)
        outcome = controller.run(name, until_ready=until_ready, look_s=look_seconds)
    typer.echo(f"{outcome.experiment}: {outcome.ending} at {outcome.stage or '-'}: {outcome.why}", err=as_json)
    if as_json:
        typer.echo(json.dumps(asdict(outcome)))
    if outcome.ending not in ("promoted", "ready"):
        raise typer.Exit(ROLLED_BACK)


def _move(
    change: Callable[[redis_py.Redis, Author], RolloutPlan],
    redis: str | None,
    config: Path | None,
    why: str,
    by: str,
    as_json: bool,
    registry: Registry | None = None,
) -> None:
    from orchestration.rollout.aliases import follow_plan
    from orchestration.rollout.moves import connected
    from serving.plan_store import Author

    plan: Any = connected(_url(redis, config), lambda client: change(client, Author(why=why, by=by)))
    if registry is not None:
        follow_plan(registry, plan)
    stage = f", {plan.experiment.id} at {plan.experiment.now.name}" if plan.experiment else ""
    arms = ", ".join(f"{arm.name} {arm.manifest_sha256[:12]} {arm.weight:.0%}" for arm in plan.arms)
    typer.echo(f"rollout plan version {plan.version}: {arms}{stage}", err=as_json)
    if as_json:
        typer.echo(plan.model_dump_json())


def _url(given: str | None, config: Path | None) -> str:
    from degre_prod.config import load_settings
    from orchestration.commands.loop import redis_url

    return redis_url(given, load_settings(config))


def _registry(file: Path | None, model: str | None) -> Registry | None:
    from degre_prod.errors import ConfigurationError
    from orchestration.registry import open_registry

    if file is None and model is None:
        return None
    if file is None or model is None:
        raise ConfigurationError("--registry and --model belong together")
    return open_registry(file, model)
