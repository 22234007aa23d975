"""`degre replay`: what a bundle would have shown for the last days' log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.commands.loop import Config, Json


def replay(
    run: Annotated[
        Path,
        typer.Argument(
            help="run folder; the log is its data set's, collected lists included", exists=True, file_okay=False
        ),
    ],
    bundle: Annotated[Path, typer.Option(help="bundle folder", exists=True, file_okay=False)],
    days: Annotated[float, typer.Option(help="before the newest request", min=0.0001)] = 7.0,
    judge: Annotated[
        Path | None, typer.Option(help="folder of a judge; default: the run's newest, else one is trained", exists=True)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the page; default: RUN/replay/ and the bundle's hash")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Compare a bundle's lists with what was shown for the last days' requests: agreement, value, segments, as a page.

    Example: degre replay runs/shop --bundle runs/shop/bundle --days 7
    """
    import json
    import sys
    from contextlib import redirect_stdout

    from degre_prod.config import load_settings
    from orchestration.replaying.replay import replay as run_replay
    from orchestration.run import open_run

    with redirect_stdout(sys.stderr):  # Feast and Ray print there; standard output is for results
        page, document = run_replay(open_run(run, load_settings(config)), bundle, days=days, judge=judge, out=out)
    typer.echo(f"{page}", err=as_json)
    if as_json:
        typer.echo(json.dumps(document))
