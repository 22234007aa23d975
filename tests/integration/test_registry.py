"""The model registry on a real SQLite MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from degre_prod.errors import ConfigurationError, MismatchError
from orchestration.registry import CHALLENGER, CHAMPION, open_registry


def test_versions_aliases_and_lineage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    registry = open_registry(tmp_path / "registry.db", "shop")
    assert registry.alias(CHAMPION) is None
    given = {"parameters": {"epochs": 3}, "metrics": {"judged": 0.5}, "lineage": {"parent": "none", "data": "abc"}}
    first = registry.register("shop-1", "/bundles/1", "a" * 64, **given)
    assert registry.register("shop-1", "/bundles/1", "a" * 64, **given) == first  # the same bundle is one version
    second = registry.register("shop-2", "/bundles/2", "b" * 64, **given)
    assert [v.version for v in registry.versions()] == [1, 2]
    registry.point(CHAMPION, first.version)
    registry.point(CHALLENGER, second.version)
    again = open_registry(tmp_path / "registry.db", "shop")  # another process would see the same
    assert again.alias(CHAMPION) == first
    assert again.alias(CHALLENGER) == second
    assert second.lineage == {"parent": "none", "data": "abc"}
    run = again.client.get_run(first.run_id)
    assert (run.data.params, run.data.metrics) == ({"epochs": "3"}, {"judged": 0.5})
    again.withdraw(CHALLENGER)
    assert again.alias(CHALLENGER) is None
    with pytest.raises(MismatchError, match=r"no version 9; there are \[1, 2\]"):
        again.point(CHAMPION, 9)


def test_a_registry_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://u:secret@127.0.0.1:1/none")
    with pytest.raises((ConfigurationError, ImportError)) as caught:
        open_registry(tmp_path / "registry.db", "shop")
    assert "secret" not in str(caught.value)
