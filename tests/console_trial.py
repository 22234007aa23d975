"""An experiment in Redis for the console to show: a real plan, the real controller, made-up users."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import redis
from rollout_plans import A, arm, feedback, follow, plan_at
from rollout_plans import served as logged
from serving_fakes import FakeFeatures, fake_engine
from serving_server import served

from orchestration.rollout.controller import Controller
from serving.experiment import Experiment
from serving.plan import RolloutPlan
from serving.plan_store import Author, publish_plan, read_plan, redis_time

TOKEN = "a-token-of-the-tests"


@contextmanager
def console(redis_url: str, **serving: Any) -> Iterator[str]:
    """Yields the base URL of a service with the console; `tokens=()` for one without a login."""
    settings = {"tokens": (TOKEN,)} | serving
    with served(fake_engine(FakeFeatures()), redis_url, **settings) as base:
        yield base


def begin(client: redis.Redis, stage: int = 0, **given: Any) -> RolloutPlan:
    """Publish a champion, then an experiment at a stage, since a second; one replica reports that it follows."""
    version = (before.version if (before := read_plan(client)) else 0) + 1
    publish_plan(client, [arm(A)], version - 1, None, Author("activate", "the first", "ann"))
    plan = plan_at(stage, **given)
    assert plan.experiment is not None
    experiment: Experiment = plan.experiment.model_copy(update={"since": redis_time(client) - timedelta(seconds=1)})
    begun = publish_plan(client, plan.arms, version, experiment, Author("start", "fresh data", "ann"))
    follow(client, begun)
    return begun


def users_come(client: redis.Redis, stage: str, users: range, gain: int = 2) -> None:
    """One request of each; odd users have the challenger and click `gain` times as often."""
    for user in users:
        who = "champion" if user % 2 == 0 else "challenger"
        logged(client, f"{stage}-{user}", user, stage, who)
        clicks = (user % 3 == 0) * (gain if who == "challenger" else 1)
        if clicks:
            feedback(client, f"{stage}-{user}", *(f"{stage}-{user}-{k}" for k in range(clicks)))


def look(client: redis.Redis) -> None:
    """One look of a controller, which may act."""
    Controller(client).step()


def log_in(client: httpx.Client, token: str) -> httpx.Response:
    """Fill in the form."""
    page = client.get("/console/login")
    return client.post("/console/login", data={"form_token": form_token(page.text), "token": token})


def form_token(page: str) -> str:
    """The token of a page's forms."""
    found = re.search(r'name="form[_-]token" (?:value|content)="([0-9a-f]+)"', page)
    assert found is not None, page
    return found[1]
