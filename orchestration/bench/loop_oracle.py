"""What a bundle would be worth that had the day's own logs: trained from nothing on them, asked the day's evaluation requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from degre_prod.artefact import digest, finished, publish, workplace
from degre_prod.bundle import load_bundle
from degre_prod.config import Settings
from orchestration.bench.loop_market import EVALUATED, Market, answers, write_day_log
from orchestration.run import create_run

_FORMAT = 1


def oracle_values(
    market: Market,
    day: int,
    *,
    logs: int,
    evaluated: int,
    settings: Settings,
    folder: Path,
    say: Callable[[str], Callable[[int], object]],
) -> np.ndarray:
    """True values (R,) of its lists on the evaluation requests of a day; made once. For measuring alone."""
    from orchestration import stages

    learning = [getattr(settings, name).model_dump() for name in ("evaluator", "mining", "generator")]
    key = digest("oracle", _FORMAT, market.seed, market.degrees, day, logs, evaluated, learning)
    out = folder / f"day-{day}"
    if not finished(out, key):
        place = workplace(out, key)
        say(f"day {day}, oracle: features")
        run = create_run(place / "run", write_day_log(market, day, logs, place / "run" / "data"), settings)
        stages.build_training_rows(run)
        stages.encode(run)
        for name, step in (
            ("evaluator", stages.train_evaluator),
            ("mining", stages.mine),
            ("generator", stages.train_generator),
            ("bundle", stages.build_bundle),
        ):
            say(f"day {day}, oracle: {name}")
            step(run)
        asked = market.asked(day, EVALUATED, evaluated)
        lists = answers(market, load_bundle(run.bundle), day, asked, say(f"day {day}, oracle: measuring"))
        np.save(place / "values.npy", market.values(day, asked, lists))
        publish(out, key)
    return np.asarray(np.load(out / "values.npy"))
