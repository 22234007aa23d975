"""The real thing: Ray Serve behind HAProxy, Feast's features in Redis, a bundle in ONNX Runtime."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import httpx
import pytest
import redis
from serving_server import poll
from tiny_bundle import START_US, TinyWorld

from degre_prod.bundle import load_bundle
from degre_prod.config import Settings
from degre_prod.errors import BundleError, ConfigurationError
from orchestration.features.replay import OnlineFeed
from orchestration.features.store import open_store
from orchestration.replay import to_http
from serving.client import RerankClient
from serving.deploy import running_service
from serving.replica import build_engine
from serving.validation import validate

GENEROUS = {"clock": "request", "port": 0, "redis_timeout_ms": 2000.0, "cpus_per_replica": 0.5}


def settings(**serving: object) -> Settings:
    return Settings.model_validate({"serving": GENEROUS | serving})


def processes(text: str) -> list[str]:
    """Command lines that contain a text."""
    out = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in out.splitlines() if text in line]


def haproxy_folder() -> Path:
    """Where the running service's HAProxy keeps its files."""
    return Path(os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent


def bound(section: str) -> str:
    """The address a section of HAProxy's configuration binds."""
    (config,) = haproxy_folder().glob("*/haproxy.cfg")
    text = config.read_text()
    return re.findall(r"bind (\S+)", text[text.index(section) :])[0]


@pytest.mark.usefixtures("ray_cluster")
def test_http_equals_offline_and_nothing_is_left(tiny: TinyWorld, clean_redis: str) -> None:
    feed = OnlineFeed(tiny.dataset, open_store(tiny.dataset, tiny.registry, clean_redis), START_US)
    with running_service(tiny.bundle.path, settings(), clean_redis) as url, RerankClient(url) as client:
        folder = haproxy_folder()
        assert processes(f"-f {folder}")
        for row in tiny.rows:
            feed.advance(row.request.event_timestamp_us)
            answer = client.rerank(to_http(row.request, explain=False))
            assert answer.source == "generator", answer.degraded
            assert answer.ids() == tiny.bundle.answer(
                row.request, row.user, row.items, tiny.bundle.manifest.list_length
            )
            assert answer.bundle == tiny.bundle.manifest_sha256
        again = client.rerank(to_http(tiny.rows[-1].request, explain=False))
        assert again.source == "cache"
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert "degre_ready 1.0" in httpx.get(f"{url}/metrics").text
        refused = httpx.post(f"{url}/v1/rerank", content=b"{")
        assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")
        assert f"maximum of {tiny.bundle.schema.max_candidates}" in httpx.get(f"{url}/openapi.json").text
        with redis.Redis.from_url(clean_redis) as store:
            poll(lambda: sum(store.xlen(f"degre:served:{s}") for s in range(4)) == len(tiny.rows) + 1)
        for page in ("frontend prometheus", "listen stats"):
            assert bound(page).startswith("127.0.0.1:")
            assert not bound(page).endswith((":8404", ":9101"))
    assert processes(str(folder)) == []
    assert not folder.exists()
    assert client_after_stop(url, tiny) == "client_fallback"


def client_after_stop(url: str, world: TinyWorld) -> str:
    with RerankClient(url) as client:
        request = to_http(world.rows[-1].request, explain=False)
        answer = client.rerank(request)
    validate(answer.ids(), [c.id for c in request.candidates], len(request.candidates))
    return answer.source


def test_the_engine_alone_explains(tiny: TinyWorld, clean_redis: str) -> None:
    configured = Settings.model_validate({"serving": GENEROUS, "redis": {"url": clean_redis}})
    engine = build_engine(load_bundle(tiny.bundle.path), configured)
    row = next(r for r in tiny.rows if len(r.request.candidate_ids) >= 4)
    answer = engine.answer(engine.prepare(to_http(row.request, explain=True))).response
    assert len(answer.items) == 3
    assert all(item.margin is not None and item.margin >= 0 for item in answer.items)
    # Nothing was materialised here: every entity is unknown and the answer says so.
    assert answer.degraded == ["unknown_user", f"unknown_items:{len(row.request.candidate_ids)}"]
    engine.close()


def test_a_changed_bundle_does_not_start(tiny: TinyWorld, clean_redis: str, tmp_path: Path) -> None:
    spoilt = tmp_path / "bundle"
    spoilt.mkdir()
    for file in tiny.bundle.path.iterdir():
        (spoilt / file.name).write_bytes(file.read_bytes())
    weights = spoilt / "generator.onnx"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(BundleError, match="was changed"), running_service(spoilt, settings(), clean_redis):
        raise AssertionError("it started")


def test_an_open_host_without_tokens_is_refused_before_anything_starts(tiny: TinyWorld) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"serving\.tokens"),
        running_service(tiny.bundle.path, settings(host="0.0.0.0"), "redis://127.0.0.1:1"),
    ):
        raise AssertionError("it started")
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ
