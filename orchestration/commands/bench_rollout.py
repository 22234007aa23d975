"""`degre bench rollout-stats`: the statistics of a rollout, by simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.commands.bench import Json


def rollout_stats(
    aa: Annotated[int, typer.Option(help="experiments without effect", min=1)] = 2000,
    ab: Annotated[int, typer.Option(help="experiments with the effect", min=1)] = 400,
    effect: Annotated[
        float, typer.Option(help="the true effect, and the smallest one worth having: 0.02 is 2 %")
    ] = 0.02,
    users: Annotated[
        int, typer.Option(help="users of the longest run; the fixed horizon is half of it", min=8)
    ] = 56_000,
    looks: Annotated[int, typer.Option(help="looks at each experiment", min=2)] = 1000,
    share: Annotated[float, typer.Option(help="share of users in treatment", min=0.01, max=0.99)] = 0.5,
    min_users: Annotated[int, typer.Option(help="users an arm must have before anything is said", min=2)] = 1000,
    seed: Annotated[int, typer.Option(help="of everything drawn", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="where JSON and plot go")] = Path("runs") / "rollout-stats",
    as_json: Json = False,
) -> None:
    """False alarms, power and samples of always-valid intervals, of a fixed test, and of that test at every look.

    About two minutes on one core.

    Example: degre bench rollout-stats --json
    """
    from degre_prod.artefact import write_json
    from orchestration.bench.report import show
    from orchestration.bench.rollout_plot import draw_decisions
    from orchestration.bench.rollout_stats import Setting, bench_rollout_stats, table

    setting = Setting(aa, ab, users, share, looks, effect, min_users=min_users, seed=seed)
    document, curves = bench_rollout_stats(setting)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "rollout-stats.json", {**document, "curves": curves})
    draw_decisions(document, curves, out / "rollout-stats")
    typer.echo(table(document))
    typer.echo(f"{out}/rollout-stats.json, {out}/rollout-stats.svg, {out}/rollout-stats.png")
    if as_json:
        show(document, as_json)
