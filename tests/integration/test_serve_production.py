"""deploy/serve.yaml is what Ray Serve understands, and builds the deployment that deploy/degre.yaml asks for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_bundle import TinyWorld

from degre_prod.config import Settings, load_settings
from degre_prod.errors import ConfigurationError
from serving import haproxy
from serving.deploy import application

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEGRE_REDIS__URL", "redis://127.0.0.1:6379/0")
    monkeypatch.setenv("DEGRE_SERVING__TOKENS", '["new", "old"]')


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
    assert built.max_ongoing_requests == 2 * serving.max_ongoing_requests
    assert built.max_queued_requests == serving.max_queued_requests
    assert built.graceful_shutdown_timeout_s == serving.drain_seconds
    assert built.health_check_timeout_s == 10
    with pytest.raises(ConfigurationError, match=r"serve\.yaml: bundel"):
        build(arguments | {"bundel": "x"})


@pytest.mark.parametrize("missing", ["DEGRE_REDIS__URL", "DEGRE_SERVING__TOKENS"])
def test_a_cluster_without_redis_or_tokens_is_refused(
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
