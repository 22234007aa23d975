"""`degre bench loop` and `off-policy`: the closed loop in a market whose taste drifts, and how far off-policy intervals hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.commands.bench import Config, Json, Out


def loop(
    seed: Annotated[int, typer.Option(help="of the world and of everything drawn from it", min=0)] = 0,
    days: Annotated[int, typer.Option(help="simulated days", min=1)] = 7,
    degrees: Annotated[float, typer.Option(help="how far taste turns a day; the control has 0")] = 10.0,
    requests: Annotated[int, typer.Option(help="requests served a day", min=50)] = 2000,
    evaluated: Annotated[int, typer.Option(help="separate requests a day that lists are valued on", min=2)] = 1000,
    logs: Annotated[int, typer.Option(help="requests in the log of day 0, and in an oracle's", min=100)] = 20_000,
    exploration: Annotated[float, typer.Option(help="share of slots that the loop explores", min=0, max=0.2)] = 0.05,
    out: Out = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """A market whose taste drifts, served over HTTP and retrained every night; a frozen bundle, an oracle and a control beside it.

    About half an hour on one core; interrupted, the same line goes on with the day it was at.

    Example: degre bench loop --seed 0 --json
    """
    from orchestration.commands.bench import _one_thread

    _one_thread()
    from degre_prod.config import load_settings
    from orchestration.bench.loop import bench_loop
    from orchestration.bench.loop_summary import print_table
    from orchestration.bench.report import show

    folder = out or Path("runs") / f"loop-{seed}"
    document = bench_loop(
        load_settings(config),
        seed=seed,
        out=folder,
        days=days,
        degrees=degrees,
        requests=requests,
        evaluated=evaluated,
        logs=logs,
        exploration=exploration,
    )
    print_table(document)
    typer.echo(f"{folder}/loop.json, {folder}/loop.md, {folder}/loop.svg, {folder}/loop.png", err=True)
    show(document, as_json)


def off_policy(
    repetitions: Annotated[int, typer.Option(help="fresh logs a question", min=2)] = 200,
    requests: Annotated[
        int, typer.Option(help="requests a log; eight times as many where few slots are explored", min=50)
    ] = 2000,
    world: Annotated[str, typer.Option(help="a simulated world, of the small size")] = "mixed",
    seed: Annotated[int, typer.Option(help="of the world and of everything drawn from it", min=0)] = 0,
    out: Out = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """How often the 95 % intervals of IPS, SNIPS and DR hold the truth of a simulated world; table, plot, JSON.

    Example: degre bench off-policy --json
    """
    from orchestration.commands.bench import _one_thread

    _one_thread()
    from degre_prod.config import load_settings
    from orchestration.bench.off_policy import bench_off_policy, print_table
    from orchestration.bench.report import show

    folder = out or Path("runs") / f"off-policy-{world}"
    least = load_settings(config).gates.min_effective_samples
    document = bench_off_policy(repetitions, requests, folder, world=world, seed=seed, min_effective=least)
    print_table(document)
    typer.echo(f"{folder}/off_policy.json, {folder}/off_policy.svg, {folder}/off_policy.png", err=True)
    if as_json:
        show(document, as_json)
