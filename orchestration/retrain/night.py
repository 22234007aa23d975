"""A night from its frozen inputs to the candidate: the order of the steps, what goes into each and what comes out.

    gate data → validate → training set → gates drift and feedback → encode → evaluator → gate evaluator → mine → generator →
    bundle → judge → gate value → gate bundle → register → activate (when asked)

Drift is looked at in point-in-time rows, so the training set comes before it. The bundle is a folder like any other until it
is registered; the judge and the bundle gate ask the very file that would serve.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degre_prod.artefact import file_digest, made_from
from orchestration import stages
from orchestration.retrain import checks, steps
from orchestration.retrain.history import History, earlier_requests
from orchestration.retrain.inputs import TABLES, logs, set_aside
from orchestration.retrain.period import Period
from orchestration.retrain.warm import Start, decide_start

if TYPE_CHECKING:
    from orchestration.retrain.journal import Journal, Result
    from orchestration.retrain.steps import Night


def make_candidate(night: Night, journal: Journal, join: Callable[[], object]) -> tuple[History, Start]:
    """Every step up to the registry; raises GateNotPassedError where a gate does not hold. `join` is called before a step
    that runs on the worker group: it joins the Ray cluster, once."""
    settings, gates = night.run.settings, night.run.settings.gates.model_dump()
    frozen, champion = night.frozen, night.champion
    raw = {
        "logs": {name: frozen.partitions[name] for name in logs(frozen.partitions)},
        "new": list(frozen.new),
        "schema": night.schema.digest(),
        "retrain": settings.retrain.model_dump(exclude={"keep_nights"}),
    }
    journal.gate("data gate", [raw, settings.data.model_dump(), gates], lambda: [_data(night)])
    found = journal.step("validate", raw, [night.log / "log.parquet"], lambda: steps.validate(night).to_json())
    history = History(**found)
    chosen = {"log": file_digest(night.log / "log.parquet"), "history": history.to_json()}

    start = decide_start(champion, night.schema, settings, cold=frozen.cold)
    journal.tell("start", start.reasons)
    work = night.work(start)

    tables = {name: frozen.partitions.get(name) for name in TABLES}
    journal.step("training set", [chosen, tables], [work.training_set], lambda: steps.training_set(night))
    rows = made_from(work.training_set)
    if (before := steps.earlier(night, history)) is not None:
        compared = [rows, made_from(before.training_set), history.new_from_us, gates]
        now = Period(work.training_set, night.schema, history.new_from_us, None)
        journal.gate("drift gates", compared, lambda: checks.drift_check(before, now, settings))

    rival = champion if steps.comparable(night) else None
    if champion is not None and rival is None:
        journal.tell("rival", ["the champion cannot read tonight's requests: gates compare with the upstream order"])

    encoder = None if start.encoder is None else file_digest(start.encoder)
    encode = _after(None, lambda: steps.encode(night, start, history))
    journal.step("encode", [rows, history.boundaries, encoder], [work.encoded], encode)
    encoded = made_from(work.encoded)

    inputs: list[Any] = [encoded, start.settings.evaluator.model_dump(), _weights(start.evaluator, "evaluator")]
    train = _after(join, lambda: stages.train_evaluator(work, start.evaluator))
    journal.step("evaluator", inputs, [work.evaluator], train)
    evaluator = made_from(work.evaluator)
    taught = rival.evaluator if rival else None
    told = None if taught is None else made_from(taught)
    journal.gate("evaluator gate", [evaluator, told, gates], lambda: [_evaluator(night, start, history, taught)])

    mining = start.settings.mining.model_dump()
    journal.step("mine", [encoded, evaluator, mining], [work.mined], _after(join, lambda: stages.mine(work)))
    mined = made_from(work.mined)
    inputs = [mined, start.settings.generator.model_dump(), _weights(start.generator, "generator")]
    train = _after(join, lambda: stages.train_generator(work, start.generator))
    journal.step("generator", inputs, [work.generator], train)

    parent = None if champion is None else champion.manifest_sha256
    bundle = _after(None, lambda: stages.build_bundle(work, parent=parent, boundaries=history.boundaries))
    generator = made_from(work.generator)
    journal.step("bundle", [generator, parent], [work.bundle / "manifest.json"], bundle)

    judge = work.folder / "judge"
    judging = _after(join, lambda: checks.train_judge_step(work.encoded, work.training_set, judge, settings))
    journal.step("judge", [encoded, settings.judge.model_dump()], [judge], judging)
    candidate = file_digest(work.bundle / "manifest.json")
    ours = None if rival is None else rival.bundle
    heldout = Period(work.training_set, night.schema, history.validation_us, None)
    against: list[Any] = [candidate, parent, rows, history.validation_us, gates]
    journal.gate(
        "value gate",
        [*against, made_from(judge)],
        lambda: [checks.value_check(work.bundle, ours, judge, heldout, settings)],
    )
    journal.gate("bundle gate", against, lambda: [checks.bundle_check(work.bundle, ours, heldout, settings)])
    return history, start


def register_candidate(night: Night, journal: Journal, history: History, start: Start) -> None:
    """Enter it in the registry as challenger."""
    named = {f"{g.name}_{name}": value for g in journal.gates for name, value in g.figures.items()}
    figures = {
        re.sub(r"[^\w.-]+", ".", name).rstrip("."): value for name, value in named.items()
    }  # as MLflow takes names
    candidate = file_digest(night.folder / "bundle" / "manifest.json")

    def enter() -> Result:
        version = steps.register(night, start, history, figures)
        return {"model": version.model, "version": version.version}

    journal.step("register", [candidate, str(steps.registry_file(night.run))], [], enter)


def activate_candidate(night: Night, journal: Journal, redis_url: str) -> dict[str, Any]:
    """Let it serve."""
    candidate = file_digest(night.folder / "bundle" / "manifest.json")
    return journal.step("activate", candidate, [], lambda: steps.activate(night, redis_url))


def _data(night: Night) -> checks.Gate:
    frozen, settings = night.frozen, night.run.settings
    new = frozen.new or tuple(logs(frozen.partitions))
    old = night.files([name for name in frozen.partitions if name not in new])
    earlier = earlier_requests(old, settings.retrain, now_us=frozen.began_us)
    return checks.data_check(
        night.files(new),
        night.schema,
        settings,
        now_us=frozen.began_us,
        earlier_requests=earlier,
        set_aside=set_aside(night.run.dataset, new),
    )


def _evaluator(night: Night, start: Start, history: History, taught: Path | None) -> checks.Gate:
    work, champion = night.work(start), night.champion
    read = work.encoded / "test"
    if champion is not None and taught is not None and start.encoder is None:
        newest = Period(work.training_set, night.schema, history.heldout_us, None)
        read = checks.encode_period(newest, champion.encoder, work.folder / "encoded_champion")
    return checks.evaluator_check(
        work.evaluator, taught, work.encoded / "test", night.run.settings, champion_encoded=read
    )


def _weights(folder: Any, name: str) -> str | None:
    """Hash of the weights that training starts from."""
    return None if folder is None else file_digest(folder / f"{name}.safetensors")


def _after(join: Callable[[], object] | None, do: Callable[[], object]) -> Callable[[], None]:
    """A step without a result, on the worker group where there is a `join`."""

    def done() -> None:
        if join is not None:
            join()
        do()

    return done
