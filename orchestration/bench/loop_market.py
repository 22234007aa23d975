"""The simulated market of `degre bench loop`: who asks on a day, what they do with a list, and what a list is truly worth.

Taste turns by some degrees a day (`drifted`); features and upstream scores stay those of day 0. Only this module and what
measures with it knows the world: the data set it writes holds no truth, and the pipeline is another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq

from degre_prod.artefact import digest, finished, publish, workplace, write_text
from degre_prod.bundle import Bundle
from degre_prod.requests import FeatureColumns, Id, Request
from degre_prod.schema import DataSchema
from degre_prod.worlds.drift import drifted
from degre_prod.worlds.simulate import (
    START,
    Log,
    data_schema,
    draw_log,
    impressions,
    item_features,
    react,
    user_features,
)
from degre_prod.worlds.truth import World, make_world

WORLD, SIZE = "mixed", "small"
SERVED, EVALUATED, LOGGED, REACTIONS, POSTED = range(5)  # what a day's random numbers are for
_FORMAT: Final = 1
_NUMERIC: Final = ("quality", "hook", "boredom", "price")


@dataclass(frozen=True)
class Market:
    """A world whose taste has turned by `degrees` times the day on that day, and not at all on day 0."""

    seed: int
    degrees: float
    world: World

    def on(self, day: int) -> World:
        """What clicks follow on a day."""
        return drifted(self.world, self.degrees * day)

    def random(self, day: int, purpose: int) -> np.random.Generator:
        """The random numbers of one purpose on one day: the same whatever the degrees, so that markets can be compared."""
        return np.random.default_rng([self.seed, 100 + day, purpose])

    def asked(self, day: int, purpose: int, count: int) -> Log:
        """Fresh requests of a day; the Plackett–Luce lists that come with them are for logs of that day alone."""
        return draw_log(self.world, count, self.random(day, purpose), market=self.on(day))

    def clicks(self, day: int, asked: Log, shown_ids_BL: np.ndarray) -> np.ndarray:
        """Which of the shown items get a click, bool (B, L)."""
        return react(self.on(day), asked.user_ids_B, shown_ids_BL, self.random(day, REACTIONS))[0]

    def values(self, day: int, asked: Log, lists_BL: np.ndarray) -> np.ndarray:
        """Expected clicks (B,) of lists given as indices into the candidates."""
        return self.on(day).true_values(asked.user_ids_B, asked.candidate_ids_BC, lists_BL[:, None])[:, 0]


def market(seed: int, degrees: float) -> Market:
    """The market of a seed."""
    return Market(seed, degrees, make_world(WORLD, SIZE, seed))


def write_day_log(of: Market, day: int, logs: int, folder: Path) -> Path:
    """A data set folder with a Plackett–Luce log of one day (day 0: what the loop begins with), without its truth."""
    key = digest("loop log", _FORMAT, of.seed, of.degrees, day, logs)
    if not finished(folder, key):
        place = workplace(folder, key)
        schema = schema_of(of)
        write_text(place / "schema.yaml", schema.to_yaml())
        pq.write_table(impressions(of.asked(day, LOGGED, logs), schema), place / "impressions.parquet")
        pq.write_table(user_features(of.world.catalogue), place / "user_features.parquet")
        pq.write_table(item_features(of.world.catalogue), place / "item_features.parquet")
        publish(folder, key)
    return folder


def schema_of(of: Market) -> DataSchema:
    """Of the data set: the newest tenths are held out, whatever has been logged by then."""
    return data_schema(of.world.spec, 0, 0).model_copy(update={"validation_start": None, "test_start": None})


def moments(day: int, count: int) -> list[datetime]:
    """When a day's requests come, evenly over the day."""
    return [START + timedelta(days=day, seconds=86_400 * i / count) for i in range(count)]


def as_requests(asked: Log, ids: Sequence[str], times: Sequence[datetime]) -> Iterator[Request]:
    """The requests as the models see them."""
    for i, (request_id, moment) in enumerate(zip(ids, times, strict=True)):
        yield Request(
            request_id=request_id,
            user_id=int(asked.user_ids_B[i]),
            event_timestamp_us=round(moment.timestamp() * 1e6),
            candidate_ids=asked.candidate_ids_BC[i].tolist(),
            scores={"upstream": asked.upstream_BC[i].tolist()},
        )


def answers(of: Market, bundle: Bundle, day: int, asked: Log, progress: Callable[[int], object]) -> np.ndarray:
    """A bundle's own lists (B, L), as indices into the candidates: what it serves where nothing is explored."""
    catalogue, L = of.world.catalogue, of.world.spec.list_length
    B = len(asked.user_ids_B)
    lists = []
    for i, request in enumerate(as_requests(asked, [""] * B, moments(day, B))):
        rows = asked.candidate_ids_BC[i] - 1
        user = FeatureColumns({"taste": catalogue.taste[asked.user_ids_B[i] - 1][None]}, 1)
        columns = {"style": catalogue.style[rows], **{name: getattr(catalogue, name)[rows] for name in _NUMERIC}}
        items = FeatureColumns(columns, len(rows))
        lists.append(bundle.answer(request, user, items, L))
        progress(1)
    return indices(asked, lists)


def indices(asked: Log, lists: Sequence[Sequence[Id]]) -> np.ndarray:
    """Lists of ids as indices into the candidates, int64 (B, L)."""
    ids_BL = np.array(lists, dtype=np.int64)
    return np.asarray((asked.candidate_ids_BC[:, None, :] == ids_BL[:, :, None]).argmax(axis=2))
