"""Fixtures that every test may use. Redis is always a private server; only DEGRE_TEST_REDIS_URL opts into another."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import redis
from hypothesis import settings

from orchestration.redis_server import running_redis

# The same cases on every run, and no limit on a single one: shared machines stall.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of the session's Redis, shared by all tests: see `clean_redis`."""
    with running_redis(os.environ.get("DEGRE_TEST_REDIS_URL")) as url:
        yield url


@pytest.fixture
def clean_redis(redis_url: str) -> str:
    """URL of the session's Redis, its database emptied before the test."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    return redis_url
