"""`degre retrain`: one night of a run, from what the streams hold to a candidate that passed its gates.

State lies in files (`state`), so a night that was killed goes on where it was, with the inputs it began with; what came in
since is the next night's. A night whose inputs have all been seen before does nothing.
"""

from __future__ import annotations

import time
import traceback
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from degre_prod.artefact import write_text
from degre_prod.errors import DataError
from degre_prod.schema import load_schema
from orchestration.retrain.champion import Champion, find_champion
from orchestration.retrain.inputs import LOG, logs, made_from, night_key, partitions
from orchestration.retrain.journal import Entry, GateNotPassedError, Journal
from orchestration.retrain.lock import alone
from orchestration.retrain.outcome import Outcome
from orchestration.retrain.state import Frozen, State
from orchestration.run import Run

if TYPE_CHECKING:
    from degre_prod.schema import DataSchema

FAILURE = "failure.txt"


def retrain(run: Run, *, redis_url: str | None = None, activate: bool = False, cold: bool = False) -> Outcome:
    """One night. With Redis the streams are collected first; with `activate` a candidate that passed its gates serves.

    `cold`: nothing of the champion is kept to start from. Raises MismatchError while another process retrains this run,
    DataError for data that cannot be learnt from, TrainingError, ServiceError when Redis is away; the champion serves on.
    """
    state = State(run.folder / "retrain")
    with alone(state.lock):
        schema = load_schema(run.dataset)
        champion = find_champion(run.folder, state, redis_url, schema.name)
        frozen = _unfinished(run, state, schema, champion, cold)
        entries: list[Entry] = []
        if frozen is None:
            if redis_url is not None:
                entries.append(_collect(run, redis_url))
            frozen, before = _inputs(run, state, schema, champion, cold)
            if before is not None and not _to_be_activated(before, champion, activate):
                return _nothing_new(before)
            if before is not None and before.id is not None:
                frozen = state.inputs_of(before.id) or frozen
            state.begin(frozen)
        try:
            return _night(run, state, schema, frozen, entries, redis_url if activate else None)
        except Exception as error:
            write_text(state.folder / frozen.id / FAILURE, traceback.format_exc())
            state.abandon()  # with the same inputs it goes on where it failed, with newer ones it begins anew
            error.add_note(f"night {frozen.id}; more in {state.folder / frozen.id / FAILURE}")
            raise


def _night(
    run: Run, state: State, schema: DataSchema, frozen: Frozen, entries: list[Entry], redis_url: str | None
) -> Outcome:
    """Every step of a night that has begun, and its end."""
    from orchestration.retrain.night import activate_candidate, make_candidate, register_candidate
    from orchestration.retrain.prune import prune
    from orchestration.retrain.report import write_page
    from orchestration.retrain.steps import Night
    from orchestration.stages import ray_cluster

    folder = state.folder / frozen.id
    parent = None
    if frozen.champion_bundle is not None and frozen.champion_sha256 is not None:
        parent = Champion(state.found(frozen.champion_bundle), frozen.champion_sha256)
    night = Night(run, frozen, folder, parent, schema)
    journal = Journal(folder)
    for entry in entries:
        journal.note(entry)
    journal.say(f"night {frozen.id}: {len(logs(frozen.new))} new files of {len(logs(frozen.partitions))}")
    outcome = Outcome("done", "every gate holds", frozen.id, champion=frozen.champion_sha256)
    try:
        with ExitStack() as stack:
            join = cache(lambda: stack.enter_context(ray_cluster(run)))  # only when there is something to train
            history, start = make_candidate(night, journal, join)
        register_candidate(night, journal, history, start)
        outcome = replace(outcome, bundle=folder / "bundle")
        if redis_url is not None:
            done = activate_candidate(night, journal, redis_url)
            state.crown((folder / "bundle").resolve(), done["manifest_sha256"])
            outcome = replace(outcome, activated=True)
    except GateNotPassedError as stop:
        outcome = replace(outcome, status="stopped", reason=str(stop))
    outcome = replace(
        outcome,
        gates=tuple(journal.gates),
        steps=journal.seconds,
        training_rows=journal.results("training set").get("rows_sha256"),
        history=journal.results("validate"),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_page(night, journal, outcome)
    state.end(frozen, outcome)
    prune(state, run.dataset, run.settings.retrain.keep_nights)
    return outcome


def _collect(run: Run, redis_url: str) -> Entry:
    import redis

    from degre_prod.errors import ServiceError
    from orchestration.collect.collector import collect

    began, clock = datetime.now(UTC).isoformat(timespec="milliseconds"), time.perf_counter()
    try:
        with redis.Redis.from_url(redis_url) as client:
            collect(client, run.dataset, run.settings.collect)
    except redis.RedisError as error:
        raise ServiceError(f"Redis does not answer: {type(error).__name__}: {error}") from error
    return Entry("collect", began, round(time.perf_counter() - clock, 3), kept=False)


def _unfinished(run: Run, state: State, schema: DataSchema, champion: Champion | None, cold: bool) -> Frozen | None:
    """The night that was killed, if it would still be the same: its files, the settings and the champion unchanged."""
    frozen = state.current()
    if frozen is None:
        return None
    there = partitions(run.dataset, run.settings.retrain.leave_out_days, state.digests)
    known = {name: there.get(name, "") for name in frozen.partitions}
    same = frozen.key == night_key(known, schema.digest(), run.settings, cold=cold)
    own = (state.folder / frozen.id / "bundle").resolve()  # it may have died between the plan and its own record of it
    sha256 = champion.manifest_sha256 if champion else None
    if same and (sha256 == frozen.champion_sha256 or (champion is not None and champion.bundle == own)):
        return frozen
    state.abandon()
    return None


def _inputs(
    run: Run, state: State, schema: DataSchema, champion: Champion | None, cold: bool
) -> tuple[Frozen, Outcome | None]:
    """What a night would learn from, and how the night that did so ended, if there was one."""
    there = partitions(run.dataset, run.settings.retrain.leave_out_days, state.digests)
    if not logs(there):
        raise DataError(
            "nothing to learn from: no impressions.parquet and no confirmed list collected", file=str(run.dataset)
        )
    key = night_key(there, schema.digest(), run.settings, cold=cold)
    sha256 = champion.manifest_sha256 if champion else None
    id_ = state.night_id(made_from(there, schema.digest(), run.settings, cold=cold, champion=sha256))
    frozen = Frozen(
        id=id_,
        key=key,
        began_us=time.time_ns() // 1000,
        partitions=there,
        new=_new(run, state, there, champion),
        cold=cold,
        champion_bundle=state.stored(champion.bundle) if champion else None,
        champion_sha256=sha256,
    )
    return frozen, state.outcome_of(key)


def _new(run: Run, state: State, there: dict[str, str], champion: Champion | None) -> tuple[str, ...]:
    """Logs that the champion was not trained on."""
    if champion is None:
        return tuple(logs(there))
    night = champion.bundle.parent
    inputs = state.inputs_of(night.name) if night.parent == state.folder.resolve() else None
    known = logs(inputs.partitions) if inputs else [LOG] if night == run.folder.resolve() else []
    return tuple(name for name in logs(there) if name not in known)


def _to_be_activated(before: Outcome, champion: Champion | None, activate: bool) -> bool:
    """A candidate that waits since that night, for the same champion."""
    sha256 = champion.manifest_sha256 if champion else None
    return activate and before.status == "done" and not before.activated and before.champion == sha256


def _nothing_new(before: Outcome) -> Outcome:
    how = {"done": "a candidate that passed its gates", "stopped": before.reason}[before.status]
    return Outcome(
        "nothing_new",
        f"nothing new since night {before.id}, which ended with {how}",
        before.id,
        gates=before.gates,
        bundle=before.bundle,
        champion=before.champion,
        activated=before.activated,
        training_rows=before.training_rows,
        history=before.history,
        ended=before.ended,
    )
