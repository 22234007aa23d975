"""The moves of a rollout: each reads the plan, makes the next one and publishes it by compare-and-set, with who and why.

All raise MismatchError when the plan does not allow the move or has changed meanwhile, PlanError for a malformed plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import redis
from pydantic import ValidationError

from degre_prod.bundle import Bundle, load_bundle
from degre_prod.errors import BundleError, ConfigurationError, MismatchError, ServiceError, explain
from degre_prod.schema import DataSchema
from serving.bundles import fetch_local
from serving.experiment import CHALLENGER, Design, Experiment
from serving.moves import abort, present_plan, under_way
from serving.plan import PlanArm, RolloutPlan, alone, weighted
from serving.plan_store import Author, publish_plan, read_history, redis_time

__all__ = ["abort", "advance", "connected", "differs", "hold", "promote", "read_design", "rollback", "start"]

Result = TypeVar("Result")


def connected(redis_url: str, call: Callable[[redis.Redis], Result]) -> Result:
    """`call` with a client; raises ServiceError when Redis is away."""
    try:
        with redis.Redis.from_url(redis_url, socket_timeout=5.0, socket_connect_timeout=5.0) as client:
            client.ping()
            return call(client)
    except (redis.RedisError, OSError) as error:
        raise ServiceError(f"Redis does not answer: {type(error).__name__}: {error}") from error


def read_design(file: Path, name: str | None = None) -> Design:
    """A design from a YAML or JSON file, its id replaced by `name`; raises ConfigurationError naming what is wrong."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text())
        if name is not None and isinstance(values, dict):
            values["id"] = name
        return Design.model_validate(values)
    except OSError as error:
        raise ConfigurationError(f"cannot read the design {file}: {error}") from error
    except ValidationError as error:
        raise ConfigurationError(f"{file}: {explain(error)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is neither YAML nor JSON: {error}") from None


def start(client: redis.Redis, bundle: Path, design: Design, author: Author) -> RolloutPlan:
    """Begin an experiment with a verified bundle as challenger; raises BundleError when it must not serve."""
    plan = present_plan(client)
    if plan.experiment is not None:
        raise MismatchError(f"experiment {plan.experiment.id} is under way; promote or abort it first")
    if any(old.change and old.change.experiment == design.id for old in read_history(client)):
        raise MismatchError(f"there was an experiment {design.id} before; give this one another id")
    loaded = load_bundle(bundle.resolve())
    champion = _champion(plan)
    if champion is not None and (problem := differs(loaded.schema, champion.schema)):
        raise BundleError(f"{bundle} cannot take the champion's requests: {problem}")
    try:
        experiment = Experiment(**design.model_dump(), since=redis_time(client))
    except ValidationError as error:
        raise ConfigurationError(f"the design: {explain(error)}") from None
    arm = PlanArm(name=CHALLENGER, bundle_uri=loaded.path.as_uri(), manifest_sha256=loaded.manifest_sha256)
    arms = weighted(plan.champion, arm, experiment.now.share)
    return publish_plan(client, arms, plan.version, experiment, replace(author, action="start"))


def advance(client: redis.Redis, author: Author, expected: int | None = None) -> RolloutPlan:
    """The next stage, whatever the figures say; after the last one the challenger is promoted."""
    plan, experiment, challenger = under_way(client, expected)
    if experiment.stage == len(experiment.stages) - 1:
        return promote(client, author, expected)
    moved = experiment.model_copy(update={"stage": experiment.stage + 1, "since": redis_time(client)})
    arms = weighted(plan.champion, challenger, moved.now.share)
    return publish_plan(client, arms, plan.version, moved, replace(author, action="advance"))


def hold(client: redis.Redis, author: Author, *, held: bool) -> RolloutPlan:
    """Leave the experiment at its stage (a breach still ends it), or let the machine go on."""
    plan, experiment, _ = under_way(client)
    if experiment.held == held:
        raise MismatchError(f"experiment {experiment.id} is {'held already' if held else 'not held'}")
    changed = experiment.model_copy(update={"held": held})
    return publish_plan(client, plan.arms, plan.version, changed, replace(author, action="hold" if held else "resume"))


def promote(client: redis.Redis, author: Author, expected: int | None = None) -> RolloutPlan:
    """The challenger serves everybody and the experiment is over."""
    plan, experiment, challenger = under_way(client, expected)
    author = replace(author, action="promote", experiment=experiment.id)
    return publish_plan(client, alone(challenger), plan.version, None, author)


def rollback(client: redis.Redis, author: Author, expected: int | None = None) -> RolloutPlan:
    """One step back: a running experiment ends; without one, the champion before the present one serves again."""
    plan = present_plan(client, expected)
    if plan.experiment is not None:
        author = replace(author, action="rollback", experiment=plan.experiment.id)
        return publish_plan(client, alone(plan.champion), plan.version, None, author)
    now = plan.champion.manifest_sha256
    before = [old.champion for old in read_history(client) if old.champion.manifest_sha256 != now]
    if not before:
        raise MismatchError("there was no other champion before this one; `degre bundle activate` names one")
    return publish_plan(client, alone(before[-1]), plan.version, None, replace(author, action="rollback"))


def differs(challenger: DataSchema, champion: DataSchema) -> str | None:
    """Why a challenger would refuse, or answer in another length, requests that the champion answers."""
    if challenger.id_type != champion.id_type:
        return f"its ids are {challenger.id_type}, not {champion.id_type}"
    if challenger.list_length != champion.list_length:
        return f"its lists have {challenger.list_length} items, not {champion.list_length}"
    if challenger.max_candidates < champion.max_candidates:
        return f"it takes {challenger.max_candidates} candidates, fewer than {champion.max_candidates}"
    for kind in ("context", "candidate_features"):
        known = {(f.name, f.kind) for f in getattr(challenger, kind)}
        if missing := sorted(name for name, kind_of in {(f.name, f.kind) for f in getattr(champion, kind)} - known):
            return f"it knows no {kind} {', '.join(missing)}"
    if missing := sorted(set(champion.scores) - set(challenger.scores)):
        return f"it knows no score {', '.join(missing)}"
    if missing := sorted({o.name for o in champion.objectives} - {o.name for o in challenger.objectives}):
        return f"it takes no feedback on {', '.join(missing)}"
    return None


def _champion(plan: RolloutPlan) -> Bundle | None:
    """The champion's bundle, None where it cannot be read from here."""
    try:
        return load_bundle(fetch_local(plan.champion.bundle_uri))
    except BundleError:
        return None
