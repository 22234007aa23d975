"""`degre bench loop`: a market whose taste drifts, served over HTTP by a loop that retrains every night.

Two markets with the same requests: one turns by some degrees a day, the control stays. In each the loop serves, with some
exploration, hears what users did, and `degre retrain` makes the next day's bundle behind its gates. A frozen bundle (the
first one), the input order and, in the drifting market, a bundle trained on each day's own logs are measured beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from degre_prod.artefact import digest, write_json
from degre_prod.config import Settings, merge
from degre_prod.errors import ConfigurationError
from orchestration.bench.loop_arm import Arm, Say, play
from orchestration.bench.loop_market import market
from orchestration.bench.loop_oracle import oracle_values
from orchestration.bench.loop_plot import draw
from orchestration.bench.loop_summary import day_values, summary, write_markdown
from orchestration.bench.report import machine

EXPLORATION: Final = 0.05
# Chosen by the loss on the newest day's feedback in other worlds than those of the benchmark (seeds 100 and up). A day has
# 2,000 lists and taste turns 10° until the next: little history, and few steps on top of the champion.
# What `auto` chose, and one member: a quarter of the time.
EVALUATOR: Final[dict[str, Any]] = {"evaluator": {"prefix_state": "additive", "members": 1}}
NIGHTS: Final[dict[str, Any]] = {
    "retrain": {
        "max_requests": 4600,
        "warm_epochs_share": 0.2,
        "warm_learning_rate_share": 0.33,
    }
}


def bench_loop(
    settings: Settings,
    *,
    seed: int,
    out: Path,
    days: int = 7,
    degrees: float = 10.0,
    requests: int = 2000,
    evaluated: int = 1000,
    logs: int = 20_000,
    exploration: float = EXPLORATION,
) -> dict[str, Any]:
    """Play both markets in the folder `out` and return the document, which lies there as loop.json with its plot.

    What is done there is not done again; raises ConfigurationError where it is another plan's.
    """
    if days < 1 or requests < 50 or evaluated < 2:
        raise ConfigurationError("at least one day, 50 requests and 2 evaluation requests a day")
    first, nightly = loop_settings(settings, exploration)
    told = [_told(first), _told(nightly)]
    _same_plan(out, digest("loop", seed, days, degrees, requests, evaluated, logs, told))
    arms = {
        name: Arm(out / name, market(seed, turn), days, requests, evaluated, logs, first, nightly)
        for name, turn in (("drift", degrees), ("control", 0.0))
    }
    with _progress() as say:
        for name, arm in arms.items():
            play(arm, _within(name, say))
        best = [
            oracle_values(
                arms["drift"].market,
                day,
                logs=logs,
                evaluated=evaluated,
                settings=first,
                folder=out / "oracle",
                say=say,
            )
            for day in range(1, days + 1)
        ]
    document = {"bench": "loop", "logs": logs, "requests_a_day": requests, "evaluated_a_day": evaluated}
    document |= summary(arms["drift"], arms["control"], best)
    document |= {
        "settings": {name: getattr(nightly, name).model_dump(mode="json") for name in ("evaluator", "retrain")},
        "machine": machine(),
    }
    document["control_input_order"] = [round(float(d["input_order"].mean()), 4) for d in day_values(arms["control"])]
    draw(document, out / "loop")
    write_markdown(document, out / "loop.md")
    write_json(out / "loop.json", document)
    return document


def loop_settings(settings: Settings, exploration: float) -> tuple[Settings, Settings]:
    """For the first training, which takes all logs there are, and for service, collector and nights."""
    common: dict[str, Any] = {
        "scaling": {"num_workers": 0},
        "serving": {
            "clock": "request",
            "host": "127.0.0.1",
            "port": 0,
            "tokens": (),
            "exploration_share": exploration,
            "redis_timeout_ms": 2000.0,  # the market judges lists, not latency, and nights leave little of a small machine
        },
        "collect": {"remember_seconds": 30 * 86_400.0},  # a resumed run still knows its lists
    }
    told = merge(EVALUATOR, _told(settings))
    return Settings(**merge(told, common)), Settings(**merge(merge(NIGHTS, told), common))


def _within(name: str, say: Say) -> Say:
    """Labels with the arm's name before them."""
    return lambda label: say(f"{name}: {label}")


def _told(settings: Settings) -> dict[str, Any]:
    """What was set explicitly."""
    return settings.model_dump(exclude_unset=True)


def _same_plan(out: Path, key: str) -> None:
    file = out / "plan.txt"
    if file.is_file() and file.read_text() != key:
        raise ConfigurationError(f"{out} holds a loop of other options; name another folder or remove it")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(key)


@contextmanager
def _progress() -> Iterator[Say]:
    """Names what begins on stderr, and counts its requests."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("loop", total=None)

        def say(label: str) -> Callable[[int], object]:
            bar.console.print(label, style="dim", highlight=False)
            bar.reset(task, description=label, total=None)
            return lambda count: bar.advance(task, count)

        yield say
