"""What the stack's containers run: node command lines, the deployer's decisions, when a night is due, the exporter's figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import pytest
import redis
from pydantic import SecretStr

from degre_prod.artefact import write_json
from degre_prod.config import RedisConfig, ServingConfig, Settings
from degre_prod.errors import ConfigurationError, ServiceError
from orchestration.stack.application import AGAIN_S, SEAL, ServeApi, keep_deployed, read_document, with_settings
from orchestration.stack.nightly import AGAIN, due, nights
from orchestration.stack.node import forget_clusters, node_environment, ray_start, state_variables

REPOSITORY = Path(__file__).parents[2]
WANTED = read_document(REPOSITORY / "deploy" / "docker" / "application.yaml")


def test_a_head_keeps_its_state_in_redis_and_a_worker_asks_the_head() -> None:
    head = ray_start("head", "ray-head", cpus=1, store_mb=100, redis_password="secret")
    assert {"--head", "--port=6379", "--redis-password=secret", "--num-cpus=1"} <= set(head)
    assert not any("password" in word for word in ray_start("head", "ray-head", cpus=1, store_mb=100))
    worker = ray_start("worker", "ray-head", cpus=2, store_mb=100)
    assert "--address=ray-head:6379" in worker
    assert "--head" not in worker
    variables = state_variables("redis://:secret@redis/0", "one")
    assert (variables["RAY_REDIS_ADDRESS"], variables["RAY_external_storage_namespace"]) == ("redis:6379", "one")
    with pytest.raises(ConfigurationError, match="rediss"):
        state_variables("rediss://redis:6380", "one")


def test_a_nodes_environment_has_haproxy_and_tracing_only_where_configured(tmp_path: Path) -> None:
    plain = node_environment(Settings(), tmp_path)
    assert (tmp_path / "haproxy").is_file()
    assert plain["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH" not in plain
    traced = node_environment(Settings(serving=ServingConfig(traces_endpoint="http://otel:4318/v1/traces")), tmp_path)
    assert traced["RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"] == "serving.tracing:span_processors"


def test_earlier_clusters_are_forgotten_and_nobody_elses(clean_redis: str) -> None:
    with redis.Redis.from_url(clean_redis) as client:
        for key in ("RAYdegre-stack-old@NODE", "RAYdegre-stack-new@NODE", "RAYother@NODE", "degre:plan"):
            client.set(key, 1)
        assert forget_clusters(clean_redis, "degre-stack-new") == 1
        assert sorted(client.keys()) == [b"RAYdegre-stack-new@NODE", b"RAYother@NODE", b"degre:plan"]


class Cluster:
    """Ray Serve's REST interface: what is deployed, and what was sent."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.sent = list(answers), 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            self.sent += 1
            assert json.loads(request.content) == WANTED
            return httpx.Response(200)
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            return httpx.Response(answer)
        return httpx.Response(200, json={"applications": {"rerank": {"status": answer}} if answer else {}})

    def keep(self, *beats: float, **options: Any) -> str:
        client = httpx.Client(base_url="http://head:8265", transport=httpx.MockTransport(self))
        return keep_deployed(ServeApi(client), WANTED, iter(beats), lambda _: None, **options)


@pytest.mark.parametrize(
    ("seen", "beats", "sent"),
    [
        (("RUNNING", "RUNNING"), (0, 2), 1),  # once: whatever runs may be an older document
        (("", "DEPLOYING", "RUNNING"), (0, 2, 4), 1),
        ((503, 503, ""), (0, 2, 4), 1),  # nothing is sent to a cluster that is away
        (("RUNNING", 503, "", "DEPLOYING"), (0, 2, AGAIN_S + 1, AGAIN_S + 3), 2),  # a cluster that begins anew
        (("", "DEPLOY_FAILED", "DEPLOY_FAILED"), (0, 2, AGAIN_S + 1), 2),
    ],
)
def test_the_application_is_sent_when_it_is_wanting(seen: tuple[Any, ...], beats: tuple[float, ...], sent: int) -> None:
    cluster = Cluster(*seen)
    cluster.keep(*beats)
    assert cluster.sent == sent


def test_the_deployer_ends_when_asked_to_and_not_before_it_has_deployed() -> None:
    cluster = Cluster("RUNNING", "DEPLOYING", "RUNNING", "RUNNING")
    assert cluster.keep(0, 2, 4, 6, until_running=True) == "running"
    assert (cluster.sent, len(cluster.answers)) == (1, 1)
    with pytest.raises(ServiceError, match="RAY_AUTH_TOKEN"):
        Cluster(401).keep(0)


def test_a_changed_setting_changes_the_document_and_nothing_else_does(tmp_path: Path) -> None:
    config = tmp_path / "stack.yaml"
    seen = []
    for text in ("serving: {replicas: 2}", "serving: {replicas: 2}", "serving: {replicas: 3}"):
        config.write_text(text)
        seen.append(with_settings(WANTED, config))
    assert seen[0] == seen[1] != seen[2]
    for app, was in zip(seen[0]["applications"], WANTED["applications"], strict=True):
        assert list(app.pop("runtime_env")["env_vars"]) == [SEAL]
        assert app == was
    own = {"applications": [{"name": "a", "runtime_env": {"env_vars": {"A": "1"}, "working_dir": "w"}}]}
    environment = with_settings(own, config)["applications"][0]["runtime_env"]
    assert (set(environment["env_vars"]), environment["working_dir"]) == ({"A", SEAL}, "w")
    config.write_text("serving: {replica: 3}")
    with pytest.raises(ConfigurationError, match="replica"):
        with_settings(WANTED, config)


def test_a_document_without_applications_is_refused(tmp_path: Path) -> None:
    for text in ("applications: []", "- 1", "{", "http_options: {}"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ConfigurationError, match=r"a\.yaml"):
            read_document(tmp_path / "a.yaml")


def outcome(run: Path, ended: str, status: str = "done", **more: Any) -> None:
    raw = {"key": "k", "status": status, "reason": "", "id": "0001-aaaaaaaa", "gates": [], "bundle": None, "champion": None,
           "activated": False, "training_rows": None, "history": {}, "steps": {}, "ended": ended} | more  # fmt: skip
    write_json(run / "retrain" / "outcomes.json", [raw])


def test_a_night_is_due_after_the_last_one_or_the_first_bundle(tmp_path: Path) -> None:
    day = timedelta(days=1)
    assert due(tmp_path, day).year == 1
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    made = datetime.fromtimestamp((tmp_path / "bundle" / "manifest.json").stat().st_mtime, UTC)
    assert due(tmp_path, day) == made + day
    outcome(tmp_path, "2026-01-02T03:00:00+00:00", "stopped")
    assert due(tmp_path, day) == datetime(2026, 1, 3, 3, tzinfo=UTC)


def test_nights_are_held_on_time_and_tried_again(tmp_path: Path) -> None:
    outcome(tmp_path, "2026-01-01T00:00:00+00:00")
    now = [datetime(2026, 1, 1, 6, tzinfo=UTC)]
    held: list[datetime] = []
    went = iter((False, True, True))

    def wait(seconds: float) -> None:
        now[0] += timedelta(seconds=seconds)

    def hold() -> bool:
        held.append(now[0])
        now[0] += timedelta(minutes=5)
        return next(went)

    schedule = nights(tmp_path, timedelta(days=1), hold, clock=lambda: now[0], wait=wait)
    first = datetime(2026, 1, 2, tzinfo=UTC)
    assert next(schedule) == first + timedelta(minutes=5) + AGAIN  # the cluster was away
    again = next(schedule)
    assert held == [first, first + timedelta(minutes=5) + AGAIN]
    assert again == held[1] + timedelta(days=1)  # nothing new leaves no trace, and is not tried at once again
    next(schedule)
    assert held[2] == again


@pytest.fixture
def observed(tmp_path: Path, clean_redis: str) -> Iterator[tuple[Path, str]]:
    """A run folder with a night, and the exporter's URL."""
    from threading import Thread

    from orchestration.stack.exporter import exporter

    gates = [
        {"name": "data", "passed": True, "reason": "", "figures": {"requests": 5.0}},
        {
            "name": "drift",
            "passed": False,
            "reason": "",
            "figures": {"psi_price": 0.7, "ks_price": 0.4, "missing_price": 0.1},
        },
    ]
    outcome(tmp_path, "2026-01-02T03:00:00+00:00", "stopped", gates=gates, steps={"mine": 12.5})
    server = exporter("127.0.0.1", 0, tmp_path, clean_redis)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def read(url: str) -> dict[str, float]:
    lines = urlopen(f"{url}/metrics", timeout=10).read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def test_the_exporter_tells_of_nights_drift_and_redis(observed: tuple[Path, str]) -> None:
    run, url = observed
    found = read(url)
    assert found['degre_nights{status="stopped"}'] == 1
    assert found['degre_nights{status="done"}'] == 0
    assert found['degre_night_ended_timestamp_seconds{status="stopped"}'] == 1767322800
    assert found['degre_drift_psi{feature="price"}'] == 0.7
    assert found['degre_drift_missing{feature="price"}'] == 0.1
    assert found['degre_gate_passed{gate="drift"}'] == 0
    assert found['degre_step_seconds{step="mine"}'] == 12.5
    assert found["degre_night_running"] == found["degre_night_failed"] == 0
    assert found['degre_log_waiting{kind="served"}'] == 0
    assert {s: found[f'degre_source_up{{source="{s}"}}'] for s in ("run", "redis", "log", "plan")} == dict.fromkeys(
        ("run", "redis", "log", "plan"), 1
    )
    failed = run / "retrain" / "0002-bbbbbbbb" / "failure.txt"
    failed.parent.mkdir()
    failed.write_text("why")
    assert read(url)["degre_night_failed"] == 1
    (run / "retrain" / "outcomes.json").write_text("{")
    broken = read(url)
    assert (broken['degre_source_up{source="run"}'], broken['degre_source_up{source="redis"}']) == (0, 1)
    assert "degre_night_failed" not in broken


def test_the_exporter_names_the_replicas_to_scrape(observed: tuple[Path, str], clean_redis: str) -> None:
    from serving.reports import ReplicaReport, write_report

    _, url = observed
    with redis.Redis.from_url(clean_redis) as client:
        for name, metrics in (("a", "10.0.0.5:4000"), ("b", None)):
            write_report(client, ReplicaReport(replica=name, version=0, readable=True, champion="", metrics=metrics))
        told = json.loads(urlopen(f"{url}/targets", timeout=10).read())
        assert told == [{"targets": ["10.0.0.5:4000"], "labels": {"replica": "a"}}]
        client.config_set("maxmemory", 1)  # full: reports fade, the replicas do not
        try:
            assert httpx.get(f"{url}/targets").status_code == 503
        finally:
            client.config_set("maxmemory", 0)


def test_prometheus_keeps_the_replicas_it_knows_while_redis_is_away(tmp_path: Path) -> None:
    from threading import Thread

    from orchestration.stack.exporter import exporter

    server = exporter("127.0.0.1", 0, tmp_path, "redis://127.0.0.1:9")
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert httpx.get(f"{url}/targets").status_code == 503
        assert httpx.get(f"{url}/nothing").status_code == 404
        assert read(url)['degre_source_up{source="redis"}'] == 0
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_a_redis_that_hangs_is_asked_once(tmp_path: Path) -> None:
    import socket
    import time

    from orchestration.stack.figures import StackCollector

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with redis.Redis.from_url(url, socket_timeout=0.5, retry=None) as client:
            began = time.monotonic()
            (up,) = (m for m in StackCollector(tmp_path, client).collect() if m.name == "degre_source_up")
            assert time.monotonic() - began < 1.0
    assert {s.labels["source"]: s.value for s in up.samples} == {"run": 1, "redis": 0, "log": 0, "plan": 0}


def test_a_node_leaves_the_files_of_one_that_runs_here_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import psutil

    from orchestration.stack.node import become_node

    (tmp_path / "kept").touch()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 32)
    monkeypatch.setattr(psutil, "process_iter", lambda _: [SimpleNamespace(info={"name": "raylet"})])
    with pytest.raises(ConfigurationError, match="a Ray node runs here already"):
        become_node("worker", Settings(), tmp_path, "ray-head", cpus=1, store_mb=100, state_in_redis=False)
    assert (tmp_path / "kept").exists()


def test_a_node_without_rays_token_or_redis_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestration.stack.node import become_node

    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    settings = Settings(redis=RedisConfig(url=SecretStr("redis://:x@127.0.0.1:9/0")))
    node = {"folder": tmp_path, "head": "ray-head", "cpus": 1, "store_mb": 100}
    with pytest.raises(ConfigurationError, match="RAY_AUTH_TOKEN"):
        become_node("head", settings, **node, state_in_redis=True)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 32)
    with pytest.raises(ConfigurationError, match=r"redis\.url"):
        become_node("head", Settings(), **node, state_in_redis=True)
    with pytest.raises(ServiceError, match="Redis does not answer"):
        become_node("head", settings, **node, state_in_redis=True)
