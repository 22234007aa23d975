"""deploy/serve.yaml is what Ray Serve understands, and builds the deployment that deploy/degre.yaml asks for."""

from __future__ import annotations

import importlib
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from serving_server import poll
from test_http import is_problem
from tiny_bundle import TinyWorld

from degre_prod.config import Settings, load_settings
from degre_prod.errors import ConfigurationError
from serving import haproxy
from serving.deploy import application
from serving.ports import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEGRE_REDIS__URL", "redis://127.0.0.1:6379/0")
    monkeypatch.setenv("DEGRE_SERVING__TOKENS", '["new", "old"]')
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")


def options(built: Any) -> Any:
    return built._bound_deployment._deployment_config


def test_serve_yaml_builds_the_application(tiny: TinyWorld, secrets: None) -> None:  # noqa: ARG001
    from ray.serve.schema import ServeDeploySchema

    document = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(document)
    (deployed,) = schema.applications
    module, _, name = str(deployed.import_path).partition(":")
    build = getattr(importlib.import_module(module), name)
    assert set(deployed.args) == {"bundle", "config"}
    arguments = {"bundle": str(tiny.bundle.path), "config": str(DEPLOY / "degre.yaml")}
    built = options(build(arguments))
    serving = load_settings(DEPLOY / "degre.yaml").serving
    assert serving.host == document["http_options"]["host"]
    scaling = built.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (serving.replicas, serving.max_replicas)
    assert scaling.target_ongoing_requests == serving.target_ongoing_requests
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (5, 120)
    assert (scaling.look_back_period_s, scaling.metrics_interval_s) == (5, 1)
    # Ray Serve sheds in plain text: the application must come first.
    assert built.max_ongoing_requests > 100 * (serving.max_ongoing_requests + serving.max_queued_requests)
    assert built.max_queued_requests == -1
    assert built.graceful_shutdown_timeout_s == serving.drain_seconds
    assert built.health_check_timeout_s == 10
    with pytest.raises(ConfigurationError, match=r"serve\.yaml: bundel"):
        build(arguments | {"bundel": "x"})


@pytest.mark.parametrize("missing", ["DEGRE_REDIS__URL", "DEGRE_SERVING__TOKENS", "RAY_SERVE_ENABLE_HA_PROXY"])
def test_a_cluster_without_redis_tokens_or_haproxy_is_refused(
    tiny: TinyWorld,
    secrets: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    from serving.production import build

    monkeypatch.delenv(missing)
    with pytest.raises(ConfigurationError, match=missing):
        build({"bundle": str(tiny.bundle.path), "config": str(DEPLOY / "degre.yaml")})


def test_replicas_are_fixed_without_a_maximum(tiny: TinyWorld) -> None:
    fixed = options(application(tiny.bundle.path, Settings.model_validate({"serving": {"replicas": 3}}), {}))
    assert (fixed.num_replicas, fixed.autoscaling_config) == (3, None)
    less = Settings.model_validate({"serving": {"replicas": 3, "max_replicas": 2}})
    with pytest.raises(ConfigurationError, match=r"serving\.max_replicas: 2 is less"):
        application(tiny.bundle.path, less, {})


def test_a_node_gets_its_environment_from_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    haproxy.main(tmp_path / "ha")
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("export RAY_SERVE_") for line in lines)
    assert f"export RAY_SERVE_HAPROXY_BINARY_PATH={tmp_path}/ha/haproxy" in lines
    assert "127.0.0.1" in (tmp_path / "ha" / "haproxy").read_text()
    assert (tmp_path / "ha").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("status", [502, 503])
def test_the_proxy_itself_answers_with_a_problem_document(tmp_path: Path, status: int) -> None:
    """A configuration like Ray's under the wrapper, with a replica that is not there, or that ends every connection."""
    variables = haproxy.haproxy_variables(tmp_path, metrics_port=1, stats_port=2, drain_s=1)
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as replica:
        address = f"127.0.0.1:{replica.getsockname()[1] if status == 502 else free_port()}"
        config = tmp_path / "haproxy.cfg"
        config.write_text(
            "defaults\n mode http\n timeout connect 1s\n timeout client 5s\n timeout server 5s\n retries 0\n"
            + "".join(f" errorfile {code} /tmp/of-ray/500.http\n" for code in (502, 503, 504))
            + f"frontend f\n bind 127.0.0.1:{port}\n default_backend b\nbackend b\n server s {address}\n"
        )
        threading.Thread(target=lambda: [replica.accept()[0].close() for _ in range(10)], daemon=True).start()
        proxy = subprocess.Popen([variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config)])
        try:
            poll(lambda: accepts(port))
            answer = httpx.get(f"http://127.0.0.1:{port}/v1/rerank")
        finally:
            proxy.terminate()
            proxy.wait()
    assert (answer.status_code, answer.headers["retry-after"]) == (status, "1")
    assert is_problem(answer, status)["detail"] == "no replica has answered"


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
