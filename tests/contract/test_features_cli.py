"""`degre features` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import small_schema, write_dataset
from typer.testing import CliRunner

from degre_prod.errors import ConfigurationError
from orchestration.commands.features import app
from orchestration.features.store import open_store


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    row = {"event_timestamp": 10**15, "created_timestamp": 10**15, "amount": 0.5}
    return write_dataset(
        tmp_path / "data", small_schema("string"), [{"user_id": "u"} | row], [{"item_id": "i"} | row], []
    )


def test_apply_then_materialize(dataset: Path, clean_redis: str) -> None:
    applied = CliRunner().invoke(app, ["apply", str(dataset), "--json"], catch_exceptions=False)
    assert json.loads(applied.stdout.splitlines()[-1]) == {
        "service": "rerank_v1",
        "registry": str(dataset / "registry.db"),
        "user_features": 5,
        "item_features": 5,
    }
    arguments = ["materialize", str(dataset), "--redis", clean_redis, "--json"]
    before = CliRunner().invoke(app, [*arguments, "--until", "2000-01-01T00:00:00Z"], catch_exceptions=False)
    assert json.loads(before.stdout) == {"feature_epoch": 1}
    assert _amount(dataset, clean_redis) is None
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(done.stdout) == {"feature_epoch": 2}
    assert _amount(dataset, clean_redis) == 0.5


def _amount(dataset: Path, url: str) -> float | None:
    store = open_store(dataset, dataset / "registry.db", url)
    answer = store.get_online_features(["user_features:amount"], [{"user_id": "u"}]).to_dict()
    return answer["amount"][0]


def test_materialize_needs_a_redis_and_a_moment(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEGRE_REDIS__URL", raising=False)
    with pytest.raises(ConfigurationError, match="--redis"):
        CliRunner().invoke(app, ["materialize", str(dataset)], catch_exceptions=False)
    with pytest.raises(ConfigurationError, match="ISO 8601"):
        CliRunner().invoke(
            app, ["materialize", str(dataset), "--redis", "redis://h", "--until", "soon"], catch_exceptions=False
        )
