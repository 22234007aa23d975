"""Real servers for the tests: HTTP and Ray, and a real bundle."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from serving_server import HttpServer, served
from tiny_bundle import TinyWorld, tiny_world

from degre_prod.config import RayConfig
from serving.cluster import environment
from serving.cluster import ray_cluster as joined_ray
from serving.heap import settle_heap


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One private Ray cluster for the session, small enough for two cores."""
    # Nothing to drain in a test, and the default minimum is felt at every shutdown.
    with (
        environment({"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.1"}),
        joined_ray(RayConfig(num_cpus=4, object_store_mb=100)),
    ):
        yield


@pytest.fixture(scope="module")
def settled_heap() -> Iterator[None]:
    """For tests whose process is a client under load: collecting what two thousand tests have left would take a third of its
    time."""
    thresholds = gc.get_threshold()
    settle_heap()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """A small data set and a real bundle around an untrained generator."""
    return tiny_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def http_server() -> HttpServer:
    """`with http_server(engine, redis_url, **serving) as base_url`: see serving_server.served."""
    return served
