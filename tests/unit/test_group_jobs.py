"""Jobs of one launch: in order, published one by one, and not done again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from degre_prod.artefact import workplace
from degre_prod.config import ScalingConfig
from degre_prod.training.launch import Job, _in_order, run_jobs

HERE = ScalingConfig(num_workers=0)


def write(config: dict[str, Any]) -> None:
    """Adds its name to what the job before it left."""
    before = Path(config["after"]).joinpath("text").read_text() if "after" in config else ""
    Path(config["folder"]).joinpath("text").write_text(before + config["name"])


def fail(config: dict[str, Any]) -> None:
    raise RuntimeError(config["name"])


def job(folder: Path, name: str, task: Any = write, **config: str) -> Job:
    place = workplace(folder / name, name * 64)
    return Job(name, task, {"name": name, "folder": str(place), **config}, place, artefact=(folder / name, name * 64))


def test_each_job_finds_what_the_one_before_it_published(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a"), job(tmp_path, "b", after=str(tmp_path / "a"))]
    seconds = run_jobs(jobs, scaling=HERE)
    assert (tmp_path / "b" / "text").read_text() == "ab"
    assert list(seconds) == ["a", "b"]
    assert all(0 <= took < 60 for took in seconds.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["made_from.json", "text"]


def test_after_a_failure_what_was_published_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="b"):
        run_jobs([job(tmp_path, "a"), broken := job(tmp_path, "b", task=fail)], scaling=HERE)
    assert (tmp_path / "a" / "text").read_text() == "a"
    assert not broken.done()


def test_a_group_that_starts_again_leaves_out_what_is_done(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a"), job(tmp_path, "b", after=str(tmp_path / "a"))]
    _in_order(jobs[:1])
    (tmp_path / "a" / "text").write_text("kept, ")
    _in_order(jobs)
    assert (tmp_path / "b" / "text").read_text() == "kept, b"
