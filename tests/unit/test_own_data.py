"""A data set of one's own: what `degre data validate` says of its coverage, and what the stack does with a mounted one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from crafted import schema
from helpers import write_dataset
from typer.testing import CliRunner

from degre_prod.config import Settings
from degre_prod.errors import DataError
from degre_prod.schema import load_schema
from degre_prod.validation import validate_dataset
from orchestration.cli import app
from orchestration.stack.own_data import OWN, has_own, refuse_another, take_own

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW_US = 1_800_000_000_000_000  # 2027


def dataset(folder: Path, *, item_known: datetime = START, requests: int = 10, **changes: object) -> Path:
    """One request an hour by user 0 or, every fifth, by one without a row; candidates 0 to 2, of which 2 has no row."""

    def known(ident: str, number: int, since: datetime, **values: object) -> dict[str, object]:
        return {ident: number, "event_timestamp": since, "created_timestamp": since, **values}

    asked = [
        {
            "request_id": f"r{r}",
            "event_timestamp": START + timedelta(hours=r),
            "user_id": int(r % 5 == 4),
            "candidate_ids": [0, 1, 2],
            "upstream_scores": {"upstream": [3.0, 2.0, 1.0]},
            "shown_ids": [0, 1],
            "feedback": {"click": [0.0, 1.0], "order": [0.0, 0.0]},
        }
        for r in range(requests)
    ]
    items = [known("item_id", i, item_known, style=[0.0, 1.0], quality=1.0, group="a") for i in range(2)]
    users = [known("user_id", 0, START, taste=[0.0, 1.0])]
    return write_dataset(folder, schema(**changes), users, items, asked)


def test_coverage_counts_splits_and_what_was_known_in_time(tmp_path: Path) -> None:
    found = validate_dataset(dataset(tmp_path), now_us=NOW_US, max_rejected_share=0).coverage
    assert found.requests_by_split == {"train": 8, "validation": 1, "test": 1}
    assert found.known_users == pytest.approx(0.8)
    assert found.known_candidates == pytest.approx(2 / 3)
    late = dataset(tmp_path / "late", item_known=START + timedelta(hours=5))
    found = validate_dataset(late, now_us=NOW_US, max_rejected_share=0).coverage
    assert found.known_candidates == pytest.approx(2 / 3 / 2)  # a row tells nothing to earlier requests


def test_validate_says_what_training_would_refuse_or_miss(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["data", "validate", str(dataset(tmp_path / "well"))])
    assert said.exit_code == 0
    assert "train 8, validation 1, test 1" in said.output
    assert "No request" not in said.output
    assert "nothing can be learnt" not in said.output
    moments = {"validation_start": START + timedelta(hours=3), "test_start": START + timedelta(days=3)}
    late = dataset(tmp_path / "late", item_known=START + timedelta(days=1), **moments)
    said = CliRunner().invoke(app, ["data", "validate", str(late)])
    assert said.exit_code == 0
    assert "No request in split test" in said.output
    assert "Most candidates are unknown" in said.output


def test_a_named_folder_must_be_a_data_set_and_an_unnamed_one_may_be_empty(tmp_path: Path) -> None:
    assert not has_own(tmp_path)
    assert not has_own(tmp_path / "absent")
    (tmp_path / "schema.yml").touch()
    with pytest.raises(
        DataError, match=r"OWN_DATA=\./mine is no data set: schema\.yaml is missing, it holds schema\.yml"
    ):
        has_own(tmp_path, "./mine")
    (tmp_path / "schema.yaml").touch()
    assert has_own(tmp_path, "./mine")


def test_own_data_is_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    own, data = dataset(tmp_path / "own"), tmp_path / "run" / "data"
    kept = (own / OWN[3]).rename(tmp_path / "kept")
    with pytest.raises(DataError, match=r"missing: item_features\.parquet"):
        take_own(own, data, Settings())
    (own / OWN[3]).write_text("no parquet")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        take_own(own, data, Settings())
    assert not data.parent.exists()
    kept.replace(own / OWN[3])
    log = (own / OWN[1]).rename(tmp_path / "part.parquet")
    (own / OWN[1]).mkdir()  # a folder of parquet files is a log, too
    log.rename(own / OWN[1] / "part.parquet")
    take_own(own, data, Settings())
    assert sorted(path.name for path in data.iterdir()) == sorted(OWN)
    assert [path.name for path in data.parent.iterdir()] == ["data"]


def test_own_data_without_a_test_split_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    moments = {"validation_start": START + timedelta(hours=3), "test_start": START + timedelta(days=3)}
    with pytest.raises(DataError, match="no request in split test"):
        take_own(dataset(tmp_path / "own", **moments), tmp_path / "data", Settings())
    assert not (tmp_path / "data").exists()


def test_own_data_that_cannot_be_read_says_who_must_be_able_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = dataset(tmp_path / "own")
    monkeypatch.setattr("orchestration.stack.own_data.os.access", lambda path, _: path.name != OWN[1])
    with pytest.raises(DataError, match=r"\./mine cannot be read by user \d+.*chmod"):
        take_own(own, tmp_path / "data", Settings(), "./mine")
    assert not (tmp_path / "data").exists()


def test_a_stack_that_learnt_from_another_data_set_says_so(tmp_path: Path) -> None:
    own, other = dataset(tmp_path / "own"), dataset(tmp_path / "other", name="other")
    refuse_another(own, dataset(tmp_path / "again", requests=4))  # an export of another day is the same data set
    with pytest.raises(DataError, match=r"learnt from the data set other, and crafted is mounted.*down --volumes"):
        refuse_another(own, other)
    assert load_schema(own).name == "crafted"
