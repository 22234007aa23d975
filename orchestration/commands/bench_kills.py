"""`degre bench loop-kills`: every part of the loop killed, and what came of the training rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.commands.bench import Json


def loop_kills(
    kills: Annotated[int, typer.Option(help="in all, shared out among the parts", min=1)] = 50,
    only: Annotated[str | None, typer.Option(help="one part: collector, redis, pipeline, mining or training")] = None,
    seed: Annotated[int, typer.Option(help="of the random moments", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Kill collector, Redis, pipeline, mining and training; each must end with the rows of a run in which nothing died.

    Example: degre bench loop-kills --kills 50 --json
    """
    from orchestration.commands.bench import _one_thread

    _one_thread()
    import tempfile
    from functools import partial

    from degre_prod.errors import ConfigurationError
    from orchestration.bench.loop_kills import SHARES, bench_loop_kills, shares
    from orchestration.bench.report import show

    if only is not None and only not in SHARES:
        raise ConfigurationError(f"--only {only}: there are {', '.join(SHARES)}")
    chosen = shares(kills) if only is None else {only: kills}
    with tempfile.TemporaryDirectory() as folder:
        document = bench_loop_kills(Path(folder), chosen, seed=seed, say=partial(typer.echo, err=True))
    show(document, as_json)
