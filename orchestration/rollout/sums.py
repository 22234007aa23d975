"""What the accounts come to: the arms' moments in Redis, by stage and metric, written by orchestration.rollout.accounts."""

from __future__ import annotations

from collections import defaultdict
from typing import cast

import redis

from degre_prod.experiments.moments import Moments, from_flat
from serving.experiment import Experiment
from serving.looks import PREFIX

PRIMARY = "primary"
METRICS = ("fallback", "error", "p99")
KEPT_DAYS = 7

ArmMoments = dict[str, dict[str, Moments]]
"""Arm → metric → moments, of one stage."""


def state_key(experiment: str) -> str:
    """The hash of positions and moments."""
    return f"{PREFIX}{experiment}"


def users_key(experiment: str, stage: str) -> str:
    """The hash of a stage's users."""
    return f"{PREFIX}{experiment}:users:{stage}"


def judged_users_key(experiment: str) -> str:
    """The set of users of whom the judge has valued a request."""
    return f"{PREFIX}{experiment}:judged"


def read_moments(client: redis.Redis, experiment: str) -> dict[str, ArmMoments]:
    """Stage → arm → metric → moments."""
    flat: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for name, value in cast(dict[bytes, bytes], client.hgetall(state_key(experiment))).items():
        stage, *rest = name.decode().split("|")
        if len(rest) == 3:
            flat[stage, rest[0], rest[1]][rest[2]] = float(value)
    found: dict[str, ArmMoments] = {}
    for (stage, arm, metric), values in flat.items():
        found.setdefault(stage, {}).setdefault(arm, {})[metric] = from_flat(values)
    return found


def let_expire(client: redis.Redis, experiment: Experiment) -> None:
    """The experiment is over: users' rows go after KEPT_DAYS, the arms' sums stay."""
    for key in (judged_users_key(experiment.id), *(users_key(experiment.id, s.name) for s in experiment.stages)):
        client.expire(key, KEPT_DAYS * 86_400)


def crossed(client: redis.Redis, experiment: str) -> int:
    """Requests left out because their user had been in the other arm in the same stage: none, unless something is wrong."""
    return int(cast(bytes | None, client.hget(state_key(experiment), "crossed")) or 0)
