"""`degre retrain`: from collected logs to a candidate that passed its gates, once or on a schedule."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.commands.loop import Config, Json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestration.retrain.outcome import Outcome

STOPPED = 3  # exit code: a gate did not hold

RunFolder = Annotated[Path, typer.Argument(help="run folder, with its data set in data/", exists=True, file_okay=False)]


def retrain(
    run: RunFolder,
    redis: Annotated[
        str | None, typer.Option(help="Redis URL: collect from its streams first; default: the configured one, if any")
    ] = None,
    activate: Annotated[
        bool,
        typer.Option("--activate", help="let a candidate that passed every gate serve, by the rollout plan in Redis"),
    ] = False,
    cold: Annotated[bool, typer.Option("--cold", help="start from nothing, not from the champion's weights")] = False,
    every: Annotated[str | None, typer.Option(help="keep running, one night each 24h, 30m, …")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Collect, check, train, judge and register a candidate; killed at any point, the same line goes on where it was.

    With nothing new it does nothing. Exit code 3: a gate did not hold; everything is kept and the champion serves on.

    Example: degre retrain runs/shop --redis redis://127.0.0.1:6379 --activate
    """
    import json
    import sys
    from contextlib import redirect_stdout

    from degre_prod.config import load_settings
    from degre_prod.errors import ConfigurationError
    from orchestration.retrain.pipeline import retrain as one_night
    from orchestration.retrain.schedule import beats, parse_duration
    from orchestration.run import open_run

    settings = load_settings(config)
    configured = settings.redis.url
    url = redis or (configured.get_secret_value() if configured else None)
    if activate and url is None:
        raise ConfigurationError("--activate publishes a rollout plan in Redis: give --redis, or set redis.url")
    opened = open_run(run, settings)

    def night() -> Outcome:
        with redirect_stdout(sys.stderr):  # Ray prints there; standard output is for results
            return one_night(opened, redis_url=url, activate=activate, cold=cold)

    def tell(outcome: Outcome) -> None:
        typer.echo(json.dumps(outcome.to_json()) if as_json else _in_words(outcome))

    if every is not None:
        keep_running(parse_duration(every), night, tell, beats)
        return
    outcome = night()
    tell(outcome)
    if outcome.status == "stopped":
        raise typer.Exit(STOPPED)


def keep_running(
    every: timedelta,
    night: Callable[[], Outcome],
    tell: Callable[[Outcome], None],
    beats: Callable[[timedelta], Iterator[int]],
) -> None:
    """A night at each beat, until interrupted. One that fails is told on stderr, and the next beat tries again."""
    import sys
    import traceback

    from degre_prod.errors import DegreError

    for _ in beats(every):
        try:
            tell(night())
        except DegreError as error:
            print(f"degre: {error}; the next night tries again", file=sys.stderr, flush=True)
        except Exception:  # a schedule must survive whatever a night does
            traceback.print_exc()
            print("degre: the night failed; the next one tries again", file=sys.stderr, flush=True)


def _in_words(outcome: Outcome) -> str:
    if outcome.status == "nothing_new":
        return outcome.reason
    report = (
        ""
        if outcome.bundle is None
        else f"; bundle {outcome.bundle}{', which serves now' if outcome.activated else ''}"
    )
    return f"night {outcome.id} {outcome.status}: {outcome.reason}{report}"
