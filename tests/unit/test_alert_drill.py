"""The drill of the alerts: it forgets none, shortens time alone, and tells what fired and what did not."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = (DEPLOY / "prometheus" / "alerts.yml").read_text()


@pytest.fixture(scope="module")
def drill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("alert_watch", DEPLOY / "docker" / "alert_watch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["alert_watch"] = module
    spec.loader.exec_module(module)
    return module


def test_each_alert_is_provoked_once() -> None:
    names = [rule["alert"] for group in yaml.safe_load(RULES)["groups"] for rule in group["rules"]]
    provoked = re.findall(r"^ *provoke (\w+) ", (DEPLOY / "docker" / "alert-drill.sh").read_text(), re.MULTILINE)
    assert sorted(provoked) == sorted(names)


def test_only_time_is_shortened(drill: ModuleType) -> None:
    short = drill.shortened(RULES, 10)
    assert "rate(degre_shed_total[30s])" in short
    before, after = (
        [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]] for text in (RULES, short)
    )
    for old, new in zip(before, after, strict=True):
        assert old.get("for") != "1m" or new["for"] == "6s"
        assert re.sub(r"\[\w+\]", "", old.pop("expr")) == re.sub(r"\[\w+\]", "", new.pop("expr"))
        assert ("for" in old) == ("for" in new)
        assert {**old, "for": ""} == {**new, "for": ""}
    with pytest.raises(SystemExit, match="whole seconds"):
        drill.shortened("for: 1s\n", 10)


def test_what_fired_and_what_did_not(drill: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "well").write_text("\n")
    (tmp_path / "fired").write_text("5\tOld\tfiring\n8\tGone\tfiring\n9\tGone\tover\n21.5\tNew\tfiring\n")
    (tmp_path / "provoked").write_text("".join(f"{name}\t10\thow\n" for name in ("Old", "New", "Gone")))
    assert [(row.alert, row.seconds, row.before) for row in drill.rows(tmp_path)] == [
        ("Old", 0.0, True),
        ("New", 11.5, False),
        ("Gone", None, False),
    ]
    assert not drill.main("summary", str(tmp_path), "10")
    assert '"did_not_fire": ["Gone"]' in capsys.readouterr().out
    assert drill.main("missing", str(tmp_path), "Gone", "New")
    assert capsys.readouterr().out == "Gone\n"
    (tmp_path / "provoked").write_text("New\t10\thow\n")
    assert drill.main("summary", str(tmp_path), "10")
    (tmp_path / "well").write_text("DegreSlow\n")  # fires while all is well
    assert not drill.main("summary", str(tmp_path), "10")
