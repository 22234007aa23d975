"""One market, day by day: serve, hear what users did, collect, measure, retrain by night. Two of them make the benchmark.

    ARM/
      run/              what `degre retrain` works in: data/ (log, features, collected/), retrain/
      first.yaml        settings of the first training · night.yaml of the nights
      redis/            append-only file · redis-morning/ as it was when the unfinished day began
      frozen/           the first bundle, which never changes
      day-D/            sent.json (what was sent), values.npz, day.json (the day is over)
      closing/          sent.json of what came after the last day

Resumable by day: a day interrupted while it served begins anew from the Redis of its morning; later than that it goes on.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from degre_prod.artefact import file_digest, replace_folder, write_json, write_text
from degre_prod.bundle import load_bundle
from degre_prod.bundle.manifest import MANIFEST
from degre_prod.config import Settings
from degre_prod.errors import ServiceError, TrainingError
from orchestration.bench.loop_accounts import SENT, accounts, read_sent
from orchestration.bench.loop_deliveries import Delivery, Posts, Shown, posts
from orchestration.bench.loop_market import (
    EVALUATED,
    POSTED,
    SERVED,
    Market,
    answers,
    indices,
    moments,
    write_day_log,
)
from orchestration.bench.loop_night import retrain

if TYPE_CHECKING:
    import redis

DAY, VALUES, CHAMPION = "day.json", "values.npz", "champion.json"
Say = Callable[[str], Callable[[int], object]]  # names what begins now, gives what counts its requests


@dataclass(frozen=True)
class Arm:
    """A market, the folder it is played in, and how much of it: days, requests served and evaluated a day, logs of day 0.
    `first`: settings of the first training; `settings`: of everything after it."""

    folder: Path
    market: Market
    days: int
    requests: int
    evaluated: int
    logs: int
    first: Settings
    settings: Settings

    @property
    def run(self) -> Path:
        """The pipeline's run folder."""
        return self.folder / "run"

    @property
    def frozen(self) -> Path:
        """The bundle of day 0."""
        return self.folder / "frozen"

    def day(self, day: int) -> Path:
        """Folder of a day; the one after the last is the closing."""
        return self.folder / (f"day-{day}" if day <= self.days else "closing")

    def over(self, day: int) -> bool:
        """Whether nothing of this day is left to do."""
        return (self.day(day) / DAY).is_file()


def play(arm: Arm, say: Say) -> None:
    """Every day that is not over. Raises ServiceError where the service doesn't do its part, TrainingError for a night
    without outcome."""
    from orchestration.redis_server import running_redis

    if arm.over(arm.days + 1):
        return
    say("day 0, log")
    write_day_log(arm.market, 0, arm.logs, arm.run / "data")
    _restore_morning(arm)
    with running_redis(data_dir=arm.folder / "redis") as redis_url:
        _begin(arm, redis_url, say)
        _serve_days(arm, redis_url, say)


def closed_accounts(arm: Arm) -> dict[str, Any]:
    """The event accounts of all days."""
    return dict(json.loads((arm.day(arm.days + 1) / DAY).read_text())["accounts"])


def _begin(arm: Arm, redis_url: str, say: Say) -> None:
    """Features online, and the first bundle, which loop and frozen start from."""
    from orchestration.features.materialize import materialize

    if arm.frozen.is_dir():
        return
    say("day 0, features")
    materialize(arm.run / "data", arm.run / "registry.db", redis_url, progress=False)
    say("day 0, training")
    outcome = _night(arm, 0, redis_url)
    if outcome["bundle"] is None or outcome["status"] == "stopped":
        raise TrainingError(f"there is no first bundle: {outcome['reason']}")
    aside = arm.frozen.with_name(".frozen")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(outcome["bundle"], aside)
    replace_folder(aside, arm.frozen)


def _serve_days(arm: Arm, redis_url: str, say: Say) -> None:
    import redis

    from serving.deploy import running_service

    with (
        redis.Redis.from_url(redis_url) as client,
        running_service(arm.frozen, arm.settings, redis_url) as url,
    ):
        for day in range(1, arm.days + 2):
            if arm.over(day):
                continue
            arm.day(day).mkdir(exist_ok=True)
            last = day > arm.days
            if not (arm.day(day) / SENT).is_file():
                if not last:
                    _await_bundle(url, _champion(arm)["manifest_sha256"])
                _keep_morning(arm, day, client)
                _market_day(arm, day, url, client, say)
            say(f"day {day}, collecting")
            found = _collect(arm, client)
            document: dict[str, Any] = {"accounts": found} if last else {"accounts": found, **_measure(arm, day, say)}
            if day < arm.days:
                say(f"day {day}, night")
                document["night"] = _night(arm, day, redis_url)
            write_json(arm.day(day) / DAY, document)


def _market_day(arm: Arm, day: int, url: str, client: redis.Redis, say: Say) -> None:
    """Lists asked for and feedback posted; at the end the day's ledger. After the last day: what was withheld until then."""
    from orchestration.bench.bed import counted
    from orchestration.bench.loop_traffic import ask, bodies, post

    withheld = _withheld(arm, day - 1)
    dropped = counted("degre_served_log_total", "fate")["dropped"]
    lists: list[Shown] = []
    sources: dict[str, int] = {}
    new = Posts([], [], frozenset())
    if day <= arm.days:
        asked = arm.market.asked(day, SERVED, arm.requests)
        times = moments(day, arm.requests)
        ids = [f"day{day}-{i:05d}" for i in range(arm.requests)]
        told = ask(url, bodies(asked, ids, times), say(f"day {day}, serving"))
        if other := {a.bundle for a in told} - {_champion(arm)["manifest_sha256"]}:
            raise ServiceError(f"on day {day} bundles answered that do not serve: {', '.join(sorted(other))}")
        sources = dict(Counter(a.source for a in told))
        shown_BL = np.array([a.ids() for a in told], dtype=np.int64)
        clicks_BL = arm.market.clicks(day, asked, shown_BL)
        lists = [
            Shown(name, moment, candidates, shown, clicks)
            for name, moment, candidates, shown, clicks in zip(
                ids, times, asked.candidate_ids_BC.tolist(), shown_BL.tolist(), clicks_BL.tolist(), strict=True
            )
        ]
        new = posts(lists, timedelta(seconds=arm.settings.collect.window_seconds), arm.market.random(day, POSTED))
    sent = [*new.today, *withheld]
    post(url, sent, say(f"day {day}, feedback"))
    _await_log(arm, client, len(lists), dropped)
    fates: Counter[str] = Counter()
    for delivery in sent:
        fates.update(delivery.fates)
    ledger = {
        "lists": {s.request_id: [list(s.shown_ids), s.clicked_ids] for s in lists},
        "kept": sorted(new.kept),
        "withheld": [d.to_json() for d in new.tomorrow],
        "fates": dict(fates),
        "sources": sources,
        "dropped": counted("degre_served_log_total", "fate")["dropped"] - dropped,
    }
    write_json(arm.day(day) / SENT, ledger)


def _withheld(arm: Arm, day: int) -> list[Delivery]:
    if day < 1:
        return []
    ledger = json.loads((arm.day(day) / SENT).read_text())
    return [Delivery.from_json(raw) for raw in ledger["withheld"]]


def _measure(arm: Arm, day: int, say: Say) -> dict[str, Any]:
    """True values of the day's lists: the loop's and the frozen bundle's on the evaluation requests, and what was served
    beside what would have been served without exploration."""
    market, L = arm.market, arm.market.world.spec.list_length
    loop, frozen = load_bundle(Path(_champion(arm)["bundle"])), load_bundle(arm.frozen)
    evaluated, served = (market.asked(day, p, n) for p, n in ((EVALUATED, arm.evaluated), (SERVED, arm.requests)))
    done = say(f"day {day}, measuring")
    shown = [lists[0] for lists in json.loads((arm.day(day) / SENT).read_text())["lists"].values()]
    lists = {
        "loop": (evaluated, answers(market, loop, day, evaluated, done)),
        "frozen": (evaluated, answers(market, frozen, day, evaluated, done)),
        "input_order": (evaluated, np.tile(np.arange(L), (arm.evaluated, 1))),
        "served": (served, indices(served, shown)),
        "unexplored": (served, answers(market, loop, day, served, done)),
    }
    values = {name: market.values(day, asked, of) for name, (asked, of) in lists.items()}
    np.savez(arm.day(day) / VALUES, allow_pickle=False, **values)
    return {"bundle": loop.manifest_sha256, "values": {name: float(v.mean()) for name, v in values.items()}}


def _night(arm: Arm, day: int, redis_url: str) -> dict[str, Any]:
    """Retrain; the new champion is remembered where there is one."""
    config = arm.folder / ("night.yaml" if day else "first.yaml")
    settings = arm.settings if day else arm.first
    write_text(config, yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True)))
    outcome = retrain(arm.run, redis_url, config, arm.folder / "nights.log")
    if outcome["activated"]:
        bundle = Path(outcome["bundle"])
        told = {"bundle": str(bundle), "manifest_sha256": file_digest(bundle / MANIFEST), "night": day}
        write_json(arm.folder / CHAMPION, told)
    return outcome


def _champion(arm: Arm) -> dict[str, Any]:
    return dict(json.loads((arm.folder / CHAMPION).read_text()))


def _collect(arm: Arm, client: redis.Redis) -> dict[str, Any]:
    """Everything there is becomes log, since the day is over; the accounts up to now."""
    from dataclasses import asdict

    from orchestration.collect.collector import FOLDER, collect, collected

    collect(client, arm.run / "data", arm.settings.collect, flush=True)
    folder = arm.run / "data" / FOLDER
    found = collected(client, folder)
    sent = read_sent([arm.day(d) for d in range(1, arm.days + 2) if (arm.day(d) / SENT).is_file()])
    return accounts(sent, folder, asdict(found.counts), (found.lost or 0) + (found.lost_feedback or 0))


def _await_bundle(url: str, sha256: str) -> None:
    """Until every replica serves the champion."""
    from orchestration.bench.bed import readyz, replica_urls, until

    def serves() -> bool:
        return {readyz(replica)["bundle"] for replica in replica_urls()} == {sha256}

    until(serves, f"{url} does not serve bundle {sha256}")


def _await_log(arm: Arm, client: redis.Redis, served: int, dropped_before: int) -> None:
    """Until every list served today is in its stream or counted as dropped."""
    from orchestration.bench.bed import counted, until
    from orchestration.collect.collector import FOLDER, collected

    def written() -> bool:
        dropped = counted("degre_served_log_total", "fate")["dropped"] - dropped_before
        return collected(client, arm.run / "data" / FOLDER).waiting_served + dropped >= served

    until(written, "lists are missing from the streams")


def _keep_morning(arm: Arm, day: int, client: redis.Redis) -> None:
    """A copy of Redis as it is before the day, while nothing is written."""
    place, aside = arm.folder / "redis-morning", arm.folder / ".redis-morning"
    # Synced every second, Redis may answer up to two seconds before a write is in its file.
    client.config_set("appendfsync", "always")
    client.set("degre:bench:morning", day)
    client.config_set("appendfsync", "everysec")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(arm.folder / "redis", aside)
    write_json(aside / DAY, {"day": day})
    replace_folder(aside, place)


def _restore_morning(arm: Arm) -> None:
    """Where a day was interrupted before its ledger was written, what it left in Redis goes."""
    kept = arm.folder / "redis-morning"
    if not (kept / DAY).is_file():
        return
    day = json.loads((kept / DAY).read_text())["day"]
    if not (arm.day(day) / SENT).is_file():
        aside = arm.folder / ".redis"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(kept, aside, ignore=shutil.ignore_patterns(DAY))
        replace_folder(aside, arm.folder / "redis")
