"""What mining says of its progress: requests done, and how many a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import crafted
import pytest
from crafted import N

from degre_prod.config import MiningConfig, ScalingConfig
from degre_prod.mining import mine as mining
from degre_prod.training.group import Worker
from degre_prod.training.job_progress import _reports, _told
from degre_prod.training.launch import run_group
from degre_prod.training.modules import save_module


@pytest.mark.parametrize(
    ("unit", "speed", "text"),
    [("requests", 1234.4, "1,234 requests/s, 3 shards"), ("requests", None, "3 shards"), ("", 5.0, "3 shards")],
)
def test_a_report_with_a_unit_is_shown_with_its_speed(
    unit: str, speed: float | None, text: str, tmp_path: Path
) -> None:
    Worker(1, 2).progress(tmp_path, 2, 5, "3 shards", unit=unit)
    report = json.loads((tmp_path / "progress-1.json").read_text())
    assert (report["done"], report["total"]) == (2, 5)
    assert _told([report], speed) == text
    assert _told([report, report | {"text": "another"}], speed) == f"{text} · another"


def test_a_folder_that_was_published_meanwhile_has_nothing_to_tell(tmp_path: Path) -> None:
    for rank in (1, 0):
        Worker(rank, 2).progress(tmp_path / "work", rank, 5, "")
    (tmp_path / "work" / "progress-2.json").write_text("{")  # being replaced
    assert [report["done"] for report in _reports(tmp_path / "work")] == [0, 1]
    (tmp_path / "work").rename(tmp_path / "published")
    assert _reports(tmp_path / "work") == []


def test_mining_counts_its_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = crafted.crafted(tmp_path, counts=(N,) * 7)
    model = crafted.evaluator(made.encoder)
    (tmp_path / "evaluator").mkdir()
    save_module(model, model.spec, tmp_path / "evaluator", "evaluator")
    said: list[tuple[float, float, str]] = []
    monkeypatch.setattr(
        Worker, "progress", lambda _self, _folder, done, total, _text, *, unit: said.append((done, total, unit))
    )
    settings = MiningConfig(requests=7, beam_width=2, keep=1, shard_size=4, chunk_size=2)
    folder = tmp_path / "mined"
    folder.mkdir()
    paths = {"encoded": str(tmp_path), "evaluator": str(tmp_path / "evaluator"), "folder": str(folder)}
    mining.mine({**paths, "mining": settings.model_dump()})
    assert said == [(done, 7, "requests") for done in (0, 2, 4, 4, 6, 7)]


def three_steps(config: dict[str, Any]) -> None:
    for done in range(4):
        Worker(0, 1).progress(Path(config["folder"]), done, 3, "validation 0.5")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_gets_progress_in_lines_and_a_terminal_does_not(
    terminal: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))  # rich asks this first
    config = {"folder": str(tmp_path)}
    run_group(three_steps, config, folder=tmp_path, scaling=ScalingConfig(num_workers=0), label="evaluator")
    assert ("evaluator: 3 of 3, validation 0.5\n" in capfd.readouterr().err) is not terminal
    assert not list(tmp_path.iterdir())
