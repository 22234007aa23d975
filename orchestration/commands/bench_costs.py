"""`degre bench unit-costs` and `degre bench capacity`: what one of everything costs, and how much of everything that makes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.commands.bench import Candidates, Json, Length


def unit_costs(as_json: Json = False) -> None:
    """Bytes of a user and an item in Redis, processor time and bytes of a request, processor time of mining.

    About four minutes on two cores. docs/scaling.md says how to plan with it.

    Example: degre bench unit-costs --json
    """
    from orchestration.commands.bench import _one_thread

    _one_thread()
    from functools import partial

    from orchestration.bench.report import show
    from orchestration.bench.unit_costs import bench_unit_costs

    show(bench_unit_costs(partial(typer.echo, err=True)), as_json)


def capacity(
    costs: Annotated[
        Path, typer.Option(help="what `degre bench unit-costs --json` printed", exists=True, dir_okay=False)
    ],
    users: Annotated[int, typer.Option(help="users with features", min=1)],
    rate: Annotated[float, typer.Option(help="requests a second at the peak", min=0.001)],
    items: Annotated[int, typer.Option(help="items with features; every cell has them all", min=1)] = 1_000_000,
    candidates: Candidates = 100,
    length: Length = 10,
    mined: Annotated[int, typer.Option(help="requests mined a night", min=1)] = 100_000,
    redis_gb: Annotated[float, typer.Option(help="memory of one Redis", min=0.1)] = 64.0,
    busy: Annotated[float, typer.Option(help="share of a core that may be in use at the peak", min=0.01, max=1)] = 0.5,
    as_json: Json = False,
) -> None:
    """Cores, memory, cells and bytes for a demand, from measured unit costs: arithmetic, explained in docs/scaling.md.

    Example: degre bench capacity --costs docs/unit-costs.json --users 100000000 --rate 50000
    """
    from orchestration.bench.capacity import Demand, read_costs
    from orchestration.bench.capacity import capacity as plan
    from orchestration.bench.report import show

    demand = Demand(users, items, rate, candidates, length, mined, redis_gb=redis_gb, busy=busy)
    show(plan(read_costs(costs), demand), as_json)
