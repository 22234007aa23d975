"""`degre demo`, the single stages of a run, and `degre bundle`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from orchestration.run import Run

RunFolder = Annotated[Path, typer.Argument(help="run folder, with its data set in data/", exists=True, file_okay=False)]
Config = Annotated[Path | None, typer.Option(help="configuration file (YAML)")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document as the last line")]

train_app = typer.Typer(help="Train the evaluator and the generator of a run.", no_args_is_help=True)
bundle_app = typer.Typer(help="Look at bundles.", no_args_is_help=True)


def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="data set folder, trivago events file or KuaiRand folder; default: simulate a world"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default: runs/ and the data's name")] = None,
    world: Annotated[str, typer.Option(help="world to simulate without --data")] = "mixed",
    size: Annotated[str, typer.Option(help="small or large")] = "large",
    seed: Annotated[int, typer.Option(help="seed of the simulated world")] = 0,
    config: Config = None,
) -> None:
    """The whole path: features, evaluator, mining, generator, bundle, serving, report. What is done is not done again.

    Example: degre demo --data ~/my-data-set
    """
    from degre_prod.config import load_settings
    from orchestration.demo import demo as run_demo

    folder = out or Path("runs") / (f"{world}-{size}" if data is None else data.resolve().with_suffix("").name)
    with redirect_stdout(sys.stderr):  # Ray prints there; standard output is for results
        document = run_demo(folder, load_settings(config), data=data, world=world, size=size, seed=seed)
    typer.echo(f"Report:     {folder}/report.html")
    typer.echo(f"Serve it:   degre serve {folder}/bundle --features {document['data']}")
    typer.echo(f"Ask it:     degre rerank --file {folder}/request.json")
    typer.echo("Your data:  docs/your-data.md, then degre demo --data FOLDER")
    typer.echo(json.dumps(document))


@train_app.command("evaluator")
def train_evaluator(run: RunFolder, config: Config = None) -> None:
    """Train the Lookahead Evaluator (training set and encoding first, where they are missing).

    Example: degre train evaluator runs/mine
    """

    def steps(opened: Run) -> None:
        from orchestration import stages

        stages.build_training_rows(opened)
        stages.encode(opened)
        stages.train_evaluator(opened)

    _on_ray(run, config, steps, lambda r: r.evaluator)


def mine(run: RunFolder, config: Config = None) -> None:
    """Mine high-value lists with the trained evaluator; killed and started again, it goes on where it was.

    Example: degre mine runs/mine
    """
    from orchestration import stages

    _on_ray(run, config, stages.mine, lambda r: r.mined)


@train_app.command("generator")
def train_generator(run: RunFolder, config: Config = None) -> None:
    """Train the generator on the mined lists and write the bundle.

    Example: degre train generator runs/mine
    """

    def steps(opened: Run) -> None:
        from orchestration import stages

        stages.train_generator(opened)
        stages.build_bundle(opened)

    _on_ray(run, config, steps, lambda r: r.bundle)


def evaluate(run: RunFolder, config: Config = None, as_json: Json = False) -> None:
    """Value of every method's lists on the test split.

    Example: degre evaluate runs/mine --json
    """
    from degre_prod.config import load_settings
    from orchestration.evaluate import evaluate as run_evaluation
    from orchestration.run import open_run

    document = run_evaluation(open_run(run, load_settings(config)))
    if as_json:
        typer.echo(json.dumps(document))
        return
    for measure, methods in document["measures"].items():
        typer.echo(measure)
        for name, value in methods.items():
            typer.echo(f"  {name:24s}{value['mean']:8.4f}  [{value['low']:.4f}, {value['high']:.4f}]")


@bundle_app.command("show")
def show(bundle: Annotated[Path, typer.Argument(help="bundle folder", exists=True, file_okay=False)]) -> None:
    """Print a bundle's manifest.

    Example: degre bundle show runs/mine/bundle
    """
    from degre_prod.bundle.manifest import read_manifest

    typer.echo(read_manifest(bundle).model_dump_json(indent=2))


@bundle_app.command("verify")
def verify(bundle: Annotated[Path, typer.Argument(help="bundle folder", exists=True, file_okay=False)]) -> None:
    """Check hashes and warm-up answers; exit code 2 when the bundle must not serve.

    Example: degre bundle verify runs/mine/bundle
    """
    from degre_prod.bundle import load_bundle

    loaded = load_bundle(bundle)
    typer.echo(f"verified: {loaded.manifest.name}, manifest sha256 {loaded.manifest_sha256}")


@bundle_app.command("activate")
def activate(
    bundle: Annotated[Path, typer.Argument(help="bundle folder", exists=True, file_okay=False)],
    redis: Annotated[str | None, typer.Option(help="Redis URL of the service; default: the configured one")] = None,
    config: Config = None,
) -> None:
    """Let every replica serve this bundle: they load it beside the present one and swap within seconds.

    Example: degre bundle activate runs/mine/bundle --redis redis://127.0.0.1:6379/0
    """
    from degre_prod.config import load_settings
    from degre_prod.errors import ConfigurationError
    from orchestration.rollout import activate as publish

    configured = load_settings(config).redis.url
    url = redis or (configured.get_secret_value() if configured else None)
    if url is None:
        raise ConfigurationError("no Redis named: --redis, redis.url in the configuration, or DEGRE_REDIS__URL")
    plan = publish(bundle, url)
    typer.echo(f"rollout plan version {plan.version}: {plan.champion.bundle_uri} ({plan.champion.manifest_sha256})")


def _on_ray(folder: Path, config: Path | None, step: Callable[[Run], Any], result: Callable[[Run], Path]) -> None:
    from degre_prod.config import load_settings
    from orchestration.run import open_run
    from orchestration.stages import ray_cluster

    run = open_run(folder, load_settings(config))
    with ray_cluster(run):
        step(run)
    typer.echo(f"{result(run)}")
