"""Names and labels of the metrics: alerts and dashboards ask for nothing that nobody shows, and labels stay bounded."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
FIGURES = Path(__file__).parents[2] / "orchestration" / "stack" / "figures.py"
SUFFIXES = ("_total", "_bucket", "_sum", "_count", "_created")


def shown() -> set[str]:
    """Families of a replica and of the exporter (whose names are literals there)."""
    families = {family.name for family in Metrics().registry.collect()}
    written = set(re.findall(r'"(degre_[a-z_]+)"', FIGURES.read_text()))
    drift = {f"degre_drift_{kind}" for kind in ("psi", "ks", "missing")}
    return families | written | drift


def asked(expression: str) -> set[str]:
    """Families that an expression names."""
    found = set(re.findall(r"\b(degre_[a-z_0-9]+)", expression))
    return {next((name.removesuffix(s) for s in SUFFIXES if name.endswith(s)), name) for name in found}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboards() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        yield file.stem, json.loads(file.read_text())


DASHBOARDS = dict(dashboards())


def test_alerts_ask_for_what_is_shown_and_each_has_a_unit_test() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) >= 20
    for rule in rules():
        assert asked(rule["expr"]) <= shown(), rule["alert"]
        assert asked(rule["expr"]) or "up ==" in rule["expr"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text())["tests"]
    firing = {case["alertname"] for t in tests for case in t["alert_rule_test"] if case["exp_alerts"]}
    quiet = {case["alertname"] for t in tests for case in t["alert_rule_test"] if not case["exp_alerts"]}
    assert firing == quiet == set(names)
    for test in tests:
        assert set().union(*(asked(s["series"]) for s in test["input_series"])) <= shown()


def test_a_name_that_nobody_shows_is_found() -> None:
    assert not asked("rate(degre_rerank_totals[5m])") <= shown()
    assert asked("sum(rate(degre_rerank_total[5m]))") <= shown()


def test_every_alert_is_explained() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    assert [rule["alert"] for rule in rules() if f"`{rule['alert']}`" not in manual] == []
    assert sorted(name for name in shown() if name not in manual) == []


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboards_have_grafanas_shape_and_ask_for_what_is_shown(name: str) -> None:
    board = DASHBOARDS[name]
    assert {"uid", "title", "panels", "schemaVersion", "time", "templating"} <= set(board)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["type"] in ("timeseries", "stat", "table")
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "degre-prometheus"
            assert asked(target["expr"]), panel["title"]
            assert asked(target["expr"]) <= shown(), panel["title"]


def test_grafana_is_provisioned_with_them() -> None:
    place = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((place / "datasources" / "prometheus.yml").read_text())
    assert (source["apiVersion"], source["datasources"][0]["uid"]) == (1, "degre-prometheus")
    provider = yaml.safe_load((place / "dashboards" / "degre.yml").read_text())["providers"][0]
    compose = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())
    mounted = compose["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounted
    assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in mounted


def test_promtool_is_content() -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("NOT CHECKED: no promtool on PATH (Debian's package prometheus has it): alerts were not run")
    for command in (("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")):
        done = subprocess.run(
            [tool, *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_request_is_counted_by_source_arm_and_status() -> None:
    metrics = Metrics()
    metrics.answer("generator", "challenger", ["stale_items:2"], {"total": 3.0})
    metrics.request("rerank", 200)
    metrics.request("rerank", 422)
    metrics.request("feedback", 503)
    assert metrics.value("degre_rerank_total", source="generator", arm="challenger", status="200") == 1
    assert metrics.value("degre_rerank_total", source="", arm="", status="422") == 1
    assert metrics.value("degre_rerank_total", source="", arm="", status="503") == 0
    assert metrics.value("degre_degraded_total", reason="stale_items") == 1


def test_what_alerts_on_a_first_event_is_shown_before_it() -> None:
    shown_at_first = Metrics().exposition().decode()
    for line in ('degre_served_log_total{fate="dropped"} 0.0', 'degre_swaps_total{fate="refused"} 0.0'):
        assert line in shown_at_first


def test_entities_by_state_and_what_waits() -> None:
    metrics = Metrics()
    metrics.entities(8, ["unknown_user", "unknown_items:3", "stale_items:2", "sharp_edge:7"])
    metrics.entities(4, [])
    found = {
        (entity, state): metrics.value("degre_entities_total", entity=entity, state=state)
        for entity in ("user", "item")
        for state in ("fresh", "stale", "unknown")
    }
    assert found == {
        ("user", "fresh"): 1, ("user", "stale"): 0, ("user", "unknown"): 1,
        ("item", "fresh"): 7, ("item", "stale"): 2, ("item", "unknown"): 3,
    }  # fmt: skip
    metrics.queues({"engine": 3, "writer": 0})
    assert metrics.value("degre_queue", queue="engine") == 3


def test_bundle_info_says_who_is_champion() -> None:
    metrics = Metrics()
    metrics.serving(("a", "b"), 4)
    assert metrics.value("degre_bundle_info", sha256="b", role="challenger") == 1
    metrics.serving(("b",), 5)
    assert metrics.value("degre_bundle_info", sha256="b", role="champion") == 1
    assert metrics.value("degre_bundle_info", sha256="b", role="challenger") == 0
    assert metrics.value("degre_bundle_info", sha256="a", role="champion") == 0
