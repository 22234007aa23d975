"""`degre bench rollout`: bundles on their way to simulated users."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from orchestration.commands.bench import Json


def rollout(
    kills: Annotated[
        int, typer.Option(help="then the drills again, the controller killed so many times at random points", min=0)
    ] = 0,
    as_json: Json = False,
) -> None:
    """A better, a worse, a slow and a broken bundle against real service, Redis and controller; then an abort at 50 %.

    About three minutes, with 30 kills about eight.

    Example: degre bench rollout --kills 30 --json
    """
    from orchestration.bench.report import show
    from orchestration.bench.rollout_drill import bench_rollout

    show(bench_rollout(kills, partial(typer.echo, err=True)), as_json)
