"""docker-compose.yml and the files beside it: what must hold of every container, whatever else is changed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from degre_prod.config import load_settings
from orchestration import cli
from orchestration.commands.stack import Role
from serving.haproxy import haproxy_binary
from serving.production import Arguments

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docker-compose.yml").read_text()
DOCKER = REPOSITORY / "deploy" / "docker"
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+)(:-([^}]*))?\}")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(VARIABLE.sub(lambda m: m[3] or "", TEXT))["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "degre"}


def command_of(service: dict[str, Any]) -> list[str]:
    return shlex.split(service["command"]) if isinstance(service["command"], str) else service["command"]


def test_it_starts_without_any_file() -> None:
    assert {m[1] for m in VARIABLE.finditer(TEXT) if m[2] is None} == set()


def test_every_setting_is_documented_with_its_default() -> None:
    example = (REPOSITORY / ".env.example").read_text()
    told = dict(
        line.removeprefix("# ").split("=", 1) for line in example.splitlines() if re.match(r"(# )?[A-Z_]+=", line)
    )
    used = {m[1]: m[3] for m in VARIABLE.finditer(TEXT)}
    assert set(told) == set(used)
    assert {n: told[n] for n in used if n not in ("OWN_DATA", "MLFLOW_TRACKING_URI")} == {
        n: d for n, d in used.items() if n not in ("OWN_DATA", "MLFLOW_TRACKING_URI")
    }


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_bounded_restarts_and_is_not_open_to_the_world(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] in ("unless-stopped", "on-failure:3")
    assert service["mem_limit"]
    assert service["logging"]["options"]["max-size"]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), port
    if service not in OURS.values():
        assert "command" in service or "entrypoint" in service
        assert ":" in service["image"] or "build" in service
    for wanted in service.get("depends_on", {}):
        assert wanted in SERVICES


def test_who_is_there_without_a_profile() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert {n for n, p in profiles.items() if not p} == {
        "redis", "bootstrap", "ray-head", "ray-worker", "serve", "gateway", "collect", "retrain",
    }  # fmt: skip
    assert {n for n, p in profiles.items() if p == ["observe"]} == {"exporter", "prometheus", "grafana"}
    assert profiles["mlflow"] == ["mlflow"]


@pytest.mark.parametrize("name", OURS)
def test_our_command_lines_are_ours(name: str) -> None:
    words = command_of(OURS[name])
    if words[0] == "sh":
        return
    assert words[0] == "degre"
    command, rest = get_command(cli.app), words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    options = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
    assert {word for word in rest if word.startswith("--")} <= options
    if command.name == "node":
        assert rest[0] in {role.value for role in Role}


def test_secrets_are_the_same_for_all_and_never_told_on_a_command_line_of_ours() -> None:
    for service in OURS.values():
        environment = service.get("environment", {})
        if "DEGRE_REDIS__URL" in environment:
            assert environment["RAY_AUTH_MODE"] == "token"
            assert len(environment["RAY_AUTH_TOKEN"]) >= 32
        assert "development-only" not in str(service["command"])


def test_redis_keeps_what_it_acknowledges() -> None:
    words = command_of(SERVICES["redis"])
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert (options["--appendonly"], options["--appendfsync"]) == ("yes", "always")
    assert (options["--maxmemory-policy"], options["--save"]) == ("volatile-lfu", "")
    assert options["--requirepass"]


def test_the_application_and_its_settings_fit_the_containers() -> None:
    document = yaml.safe_load((DOCKER / "application.yaml").read_text())
    arguments = Arguments.model_validate(document["applications"][0]["args"])
    assert str(arguments.bundle) == "/srv/degre/run/bundle"
    for name in ("ray-head", "ray-worker"):
        assert f"./deploy/docker/stack.yaml:{arguments.config}:ro" in SERVICES[name]["volumes"]
    settings = load_settings(DOCKER / "stack.yaml")
    assert settings.serving.host == document["http_options"]["host"] == "0.0.0.0"
    cpus = [
        int(command_of(SERVICES[n])[command_of(SERVICES[n]).index("--cpus") + 1]) for n in ("ray-head", "ray-worker")
    ]
    need = settings.serving.replicas * settings.serving.cpus_per_replica
    assert sum(cpus) >= need + settings.scaling.num_workers * settings.scaling.cpus_per_worker
    assert all(count >= settings.serving.cpus_per_replica for count in cpus)
    dashboards = yaml.safe_load((REPOSITORY / "deploy" / "serve.yaml").read_text())
    assert document["http_options"] == dashboards["http_options"]


@pytest.mark.parametrize("name", ["HEAD_ADDRESS", "REDIS_ADDRESS"])
def test_fixed_addresses_are_nobody_elses(name: str) -> None:
    from ipaddress import ip_address, ip_network

    found = {m[1]: m[3] for m in VARIABLE.finditer(TEXT)}
    head = ip_address(found[name])
    assert head in ip_network(found["SUBNET"])
    assert head not in ip_network(found["DYNAMIC_ADDRESSES"])
    assert ip_network(found["DYNAMIC_ADDRESSES"]).subnet_of(ip_network(found["SUBNET"]))


def test_haproxy_takes_the_gateways_configuration() -> None:
    check = [haproxy_binary(), "-c", "-f", str(DOCKER / "gateway.cfg")]
    done = subprocess.run(check, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_compose_takes_the_file() -> None:
    tool = next((t for t in ("docker-compose",) if shutil.which(t)), None)
    if tool is None:
        pytest.skip("NOT CHECKED: no docker-compose on PATH")
    words = [
        tool,
        "-f",
        str(REPOSITORY / "docker-compose.yml"),
        "--profile",
        "observe",
        "--profile",
        "mlflow",
        "config",
        "-q",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", sorted(p.name for p in DOCKER.glob("*.sh")))
def test_scripts_are_shell_and_executable(script: str) -> None:
    path = DOCKER / script
    assert path.stat().st_mode & 0o111
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0, done.stderr
