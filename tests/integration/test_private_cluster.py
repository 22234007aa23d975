"""A private Ray cluster runs with no more than this project needs of it."""

from __future__ import annotations

import psutil
import pytest

LEAN = {"RAY_enable_metrics_collection": "0", "RAY_prestart_worker_first_driver": "0"}


@pytest.mark.usefixtures("ray_cluster")
def test_the_node_collects_no_metrics_and_starts_no_worker_in_advance() -> None:
    (raylet,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
    found = raylet.environ()
    assert LEAN.items() <= found.items()
