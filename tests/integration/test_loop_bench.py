"""`degre bench loop` in small: a real service, a real pipeline, two days, and an interruption. No figure is judged here."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from degre_prod.config import Settings, load_settings
from degre_prod.worlds import catalogue, simulate
from orchestration.bench import loop, loop_arm, loop_traffic
from orchestration.bench.loop import bench_loop
from orchestration.bench.loop_arm import Arm, Say, play
from orchestration.bench.loop_deliveries import FATES

DAYS, REQUESTS, EVALUATED, LOGS = 2, 60, 20, 400
SMALL = Settings.model_validate(
    {
        "evaluator": {"prefix_state": "additive", "epochs": 1, "min_steps": 4, "togo_steps": 2},
        "mining": {"requests": 40, "beam_width": 2},
        "generator": {"epochs": 1},
        "judge": {"epochs": 1, "min_steps": 4},
        "retrain": {"max_requests": 1000, "heldout_share": 0.2},
        "gates": {
            "min_requests": 1,
            "max_psi": 100.0,
            "max_ks": 1.0,
            "max_missing_rise": 1.0,
            "max_feedback_ratio": 100.0,
            "max_calibration_error": 1.0,
            "min_rank_quality": 0.0,
            "min_champion_rank_quality": 0.0,
            "max_value_loss": 100.0,
            "max_latency_ratio": 100.0,
            "min_coverage_ratio": 0.0,
            "min_diversity_ratio": 0.0,
        },
    }
)


class PulledPlugError(Exception):
    """Stands for whatever ends the benchmark in the middle of a day."""


def night_here(run: Path, redis_url: str, config: Path, said: Path) -> dict[str, Any]:
    """`degre retrain` in this process, which has imported everything already."""
    from orchestration.retrain.pipeline import retrain
    from orchestration.run import open_run

    with said.open("a") as log, redirect_stdout(log):
        outcome = retrain(open_run(run, load_settings(config)), redis_url=redis_url, activate=True)
    return json.loads(json.dumps(outcome.to_json()))


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer users and items, so that their features are online in a second."""
    for module in (catalogue, simulate):
        monkeypatch.setattr(module, "ITEMS", 300)
        monkeypatch.setattr(module, "USERS", 200)


@pytest.mark.usefixtures("small_world", "ray_cluster")
def test_a_loop_is_interrupted_goes_on_and_accounts_for_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_arm, "retrain", night_here)
    played: list[str] = []

    def play_or_copy(arm: Arm, say: Say) -> None:
        """The control costs as much as the drifting market and runs the same code."""
        if arm.folder.name == "drift":
            play(arm, lambda label: (played.append(label), say(label))[1])
        else:
            shutil.copytree(tmp_path / "drift", arm.folder, dirs_exist_ok=True)

    real_post = loop_traffic.post

    def half_a_post(url: str, deliveries: list[Any], progress: Any) -> None:
        if len(played) and played[-1].startswith("day 2"):
            real_post(url, deliveries[: len(deliveries) // 2], progress)
            raise PulledPlugError
        real_post(url, deliveries, progress)

    monkeypatch.setattr(loop, "play", play_or_copy)
    monkeypatch.setattr(loop, "oracle_values", lambda *_, **__: np.full(EVALUATED, 2.0))
    monkeypatch.setattr(loop_traffic, "post", half_a_post)
    options: dict[str, Any] = {"requests": REQUESTS, "evaluated": EVALUATED, "logs": LOGS, "exploration": 0.2}
    with pytest.raises(PulledPlugError):
        bench_loop(SMALL, seed=100, out=tmp_path, days=DAYS, **options)
    monkeypatch.setattr(loop_traffic, "post", real_post)
    played.clear()
    document = bench_loop(SMALL, seed=100, out=tmp_path, days=DAYS, **options)

    assert not [label for label in played if label.startswith("day 1,")], "a day that is over is not played again"
    for arm in ("drift", "control"):
        told = document["accounts"][arm]
        assert (told["twice"], told["misjudged"], told["differing"]) == (0, {}, 0)
        assert told["events"]["lost"] == 0
    events = document["events"]
    assert events["served"] == DAYS * REQUESTS == events["logged"] + events["dropped"]
    assert sum(events[fate] for fate in FATES) == events["feedback"] > DAYS * REQUESTS / 2
    assert document["gates"]["drift"] == {
        "activated": 1,
        "stopped": [],
        "passed_by_gate": dict.fromkeys(("data", "drift", "feedback", "evaluator", "value", "bundle"), 1),
    }
    for name in ("loop", "frozen", "oracle", "input_order", "served_value", "recovered"):
        assert len(document[name]) == DAYS
    assert document["loop"][0] == document["frozen"][0]  # on the first day they are one bundle
    days = [json.loads((tmp_path / "drift" / f"day-{d}" / "day.json").read_text()) for d in (1, 2)]
    assert days[0]["bundle"] != days[1]["bundle"]
    assert document["gain_over_frozen"] == document["control_gain"]
    assert document["exploration_cost"] != 0
    assert {"loop.json", "loop.md", "loop.svg", "loop.png"} <= {f.name for f in tmp_path.iterdir()}
    assert not list((tmp_path / "drift" / "run").rglob("truth")), "the pipeline's folder holds no truth"
