"""`degre rollout …` and the shell scripts, on real bundles, a real Redis and a real registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from rollout_plans import follow
from tiny_bundle import TinyWorld
from typer.testing import CliRunner

from degre_prod.errors import BundleError, ConfigurationError, MismatchError
from orchestration.bench.swaps import renamed
from orchestration.cli import app
from orchestration.registry import open_registry
from orchestration.rollout import moves
from orchestration.rollout.controller import Controller
from serving.plan_store import LEASE_KEY, read_history, read_plan

SCRIPTS = Path(moves.__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def bundles(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same bundle under two names."""
    return tiny.bundle.path, renamed(tiny.bundle, tmp_path_factory.mktemp("renamed") / "other")


def degre(url: str, *words: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, words), "--redis", url], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout.splitlines()[-1]) if "--json" in words else done.output


def script(url: str, name: str, *words: object) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = os.environ | {"PATH": path, "DEGRE_REDIS__URL": url}
    command = [str(SCRIPTS / name), *map(str, words)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)


def test_an_experiment_by_hand(clean_redis: str, bundles: tuple[Path, Path], tmp_path: Path) -> None:
    champion, challenger = bundles
    with pytest.raises(MismatchError, match="no rollout plan yet"):
        degre(clean_redis, "rollout", "status")
    with pytest.raises(MismatchError, match="activate"):
        degre(clean_redis, "rollout", "start", challenger, "--id", "one")
    degre(clean_redis, "bundle", "activate", champion)
    with pytest.raises(ConfigurationError, match="--id"):
        degre(clean_redis, "rollout", "start", challenger)
    wrong = tmp_path / "design.yaml"
    wrong.write_text("id: one\nstages: [{name: a, share: 2}]\n")
    with pytest.raises(ConfigurationError, match=r"stages\.0\.share"):
        degre(clean_redis, "rollout", "start", challenger, "--plan", wrong)
    started = degre(clean_redis, "rollout", "start", challenger, "--id", "one", "--why", "try", "--by", "ann", "--json")
    assert [s["name"] for s in started["experiment"]["stages"]] == ["shadow", "1%", "5%", "25%", "50%", "100%"]
    assert (started["change"]["by"], started["change"]["why"]) == ("ann", "try")
    with pytest.raises(MismatchError, match="under way"):
        degre(clean_redis, "bundle", "activate", challenger)
    with pytest.raises(MismatchError, match="under way"):
        degre(clean_redis, "rollout", "start", challenger, "--id", "two")
    assert degre(clean_redis, "rollout", "advance", "--json")["arms"][1]["weight"] == 0.01
    degre(clean_redis, "rollout", "hold")
    told = degre(clean_redis, "rollout", "status", "--json")
    assert (told["experiment"]["stage"], told["experiment"]["held"], told["agree"]) == ("1%", True, False)
    assert [c["action"] for c in told["history"]] == ["activate", "start", "advance", "hold"]
    assert "no replica reports" in degre(clean_redis, "rollout", "status")
    degre(clean_redis, "rollout", "resume")
    degre(clean_redis, "rollout", "abort", "--why", "enough")
    outcome = degre(clean_redis, "rollout", "run", "--id", "one", "--json", code=3)
    assert (outcome["ending"], outcome["why"]) == ("aborted", "enough")
    with pytest.raises(MismatchError, match="another id"):
        degre(clean_redis, "rollout", "start", challenger, "--id", "one")


def test_promotion_and_rollback_move_the_aliases(
    clean_redis: str, bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = tmp_path / "registry.db"
    registry = open_registry(file, "shop")
    degre(clean_redis, "bundle", "activate", bundles[0])
    degre(clean_redis, "rollout", "start", bundles[1], "--id", "one")

    def versions() -> list[int | None]:
        return [v.version if (v := registry.alias(name)) else None for name in ("champion", "challenger")]

    with redis.Redis.from_url(clean_redis) as client:
        plan = read_plan(client)
        assert plan is not None
        for arm in plan.arms:
            registry.register(arm.name, arm.bundle_uri, arm.manifest_sha256, parameters={}, metrics={}, lineage={})
        follow(client, plan)
        assert Controller(client, registry=registry).step() is not None
        assert versions() == [1, 2]
        client.delete(LEASE_KEY)
        moves.promote(client, moves.Author())
        # As if the one who promoted had died before the alias was moved: whoever looks next does it.
        assert versions() == [1, 2]
        Controller(client, registry=registry).step()
        assert versions() == [2, None]
    degre(clean_redis, "rollout", "rollback", "--registry", file, "--model", "shop", "--why", "fell")
    assert versions() == [1, None]
    with pytest.raises(ConfigurationError, match="belong together"):
        degre(clean_redis, "rollout", "rollback", "--registry", file)


def test_a_challenger_must_take_the_champions_requests(bundles: tuple[Path, Path], tiny: TinyWorld) -> None:
    schema = tiny.bundle.schema
    assert moves.differs(schema, schema) is None
    for change, told in (
        ({"id_type": "string"}, "ids are string"),
        ({"list_length": schema.list_length + 1}, "lists have"),
        ({"max_candidates": schema.max_candidates - 1}, "candidates, fewer"),
        ({"context": schema.context[:1]}, f"knows no context {schema.context[1].name}"),
        ({"scores": ()}, "knows no score upstream"),
        ({"objectives": ()}, "takes no feedback on click"),
    ):
        found = moves.differs(schema.model_copy(update=change), schema)
        assert found is not None
        assert told in found
    assert bundles[0] != bundles[1]


def test_a_damaged_challenger_does_not_start(
    clean_redis: str, bundles: tuple[Path, Path], tiny: TinyWorld, tmp_path: Path
) -> None:
    degre(clean_redis, "bundle", "activate", bundles[0])
    damaged = renamed(tiny.bundle, tmp_path / "damaged")
    (damaged / "generator.onnx").write_bytes(b"nothing")
    with pytest.raises(BundleError):
        degre(clean_redis, "rollout", "start", damaged, "--id", "one")


def test_the_scripts(
    clean_redis: str, bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    degre(clean_redis, "bundle", "activate", bundles[0])
    tested = script(clean_redis, "aa.sh", bundles[0], "same", 4)
    assert tested.returncode == 0, tested.stderr
    assert "experiment same: half" in tested.stdout
    degre(clean_redis, "rollout", "start", bundles[1], "--id", "one")
    back = script(clean_redis, "rollback.sh", "fell")
    assert back.returncode == 0, back.stderr
    design = tmp_path / "design.yaml"
    design.write_text("id: ignored\nstages: [{name: shadow, share: 0.0}]\n")
    monkeypatch.setenv("LIMIT_SECONDS", "3")
    late = script(clean_redis, "canary.sh", bundles[1], "two", design)  # without a service nothing is ever decided
    assert late.returncode == 4, late.stderr
    with redis.Redis.from_url(clean_redis) as client:
        history = [(p.change.action, p.change.why) for p in read_history(client) if p.change]
    assert history[-1] == ("abort", "not decided after 3 seconds")
    assert ("rollback", "fell") in history
    assert history[2] == ("abort", "A/A test is over, nothing was found")
