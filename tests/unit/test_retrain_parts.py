"""The parts of `degre retrain` that need no night: history, inputs, lock, schedule, state, pruning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collected_day import collect_day
from typer.testing import CliRunner

from degre_prod.config import GatesConfig, RetrainConfig, Settings
from degre_prod.errors import ConfigurationError, DataError, MismatchError, TrainingError
from degre_prod.schema import load_schema
from degre_prod.worlds.simulate import simulate
from orchestration import cli
from orchestration.commands.retrain import keep_running
from orchestration.retrain import pipeline
from orchestration.retrain.gates import Gate
from orchestration.retrain.history import DAY_US, MIN_HELDOUT, History, split_moments, write_history
from orchestration.retrain.inputs import logs, night_key, partitions, set_aside
from orchestration.retrain.journal import GateNotPassedError, Journal
from orchestration.retrain.lineage import code_version, data_lineage
from orchestration.retrain.lock import alone
from orchestration.retrain.outcome import Outcome, outcome_from
from orchestration.retrain.prune import INTERMEDIATE, prune
from orchestration.retrain.schedule import beats, parse_duration
from orchestration.retrain.state import Frozen, State

NOW_US = 1_800_000_000_000_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 400 requests a second apart, and one collected day of 60 lists, 20 of them unconfirmed."""
    folder = tmp_path_factory.mktemp("retrain") / "data"
    simulate("mixed", "small", folder, train=300, validation=50, test=50)
    collect_day(folder, 2, 60, unconfirmed=20)
    return folder


def history(dataset: Path, out: Path, **settings: Any) -> tuple[History, pa.Table]:
    log, day = dataset / "impressions.parquet", *dataset.glob("collected/day=*/*.parquet")
    found = write_history([log, day], [day], load_schema(dataset), RetrainConfig(**settings), out, now_us=NOW_US)
    return found, pq.read_table(out / "log.parquet")


def test_only_confirmed_lists_are_learnt_from(dataset: Path, tmp_path: Path) -> None:
    found, rows = history(dataset, tmp_path)
    assert (found.requests, found.new, found.unconfirmed, found.older) == (440, 40, 20, 0)
    assert rows.num_rows == 440
    ids = rows["request_id"].to_pylist()
    assert sum(i.startswith("d2-") for i in ids) == 40
    assert not {f"d2-{r}" for r in range(40, 60)} & set(ids)


def test_the_history_ends_at_its_bounds(dataset: Path, tmp_path: Path) -> None:
    newest, rows = history(dataset, tmp_path, max_requests=100)
    assert newest.requests == rows.num_rows == 100
    assert newest.older == 340
    day, rows = history(dataset, tmp_path, history_days=1.0)
    assert day.requests == rows.num_rows == 40
    assert day.from_us == day.new_from_us
    assert day.to_us - day.from_us < DAY_US


def test_the_newest_part_is_held_out(dataset: Path, tmp_path: Path) -> None:
    found, rows = history(dataset, tmp_path)
    times = rows["event_timestamp"].cast(pa.int64()).to_numpy()
    assert (np.diff(times) > 0).all()
    heldout, validation = (times >= found.heldout_us).sum(), (times >= found.validation_us).sum()
    assert heldout == 88  # a fifth of all: less than MIN_HELDOUT
    assert validation == 2 * 88


def test_the_held_out_part_goes_with_what_is_new() -> None:
    times = np.arange(10_000, dtype=np.int64)
    for new, wanted in ((10, MIN_HELDOUT), (4000, 600), (10_000, 1500)):
        assert split_moments(times, new, RetrainConfig()) == (10_000 - 2 * wanted, 10_000 - wanted)
    assert split_moments(times, 10_000, RetrainConfig(max_heldout=300))[1] == 9700
    with pytest.raises(DataError, match="cannot be split"):
        split_moments(np.zeros(50, np.int64), 50, RetrainConfig())
    assert split_moments(times[:100], 100, RetrainConfig()) == (60, 80)  # never over a fifth


def test_a_request_counts_once(dataset: Path, tmp_path: Path) -> None:
    log = dataset / "impressions.parquet"
    found = write_history([log, log], [], load_schema(dataset), RetrainConfig(), tmp_path, now_us=NOW_US)
    assert (found.requests, found.new) == (400, 400)  # nothing new: then all of it is


def test_rows_that_break_a_rule_are_set_aside(dataset: Path, tmp_path: Path) -> None:
    table = pq.read_table(dataset / "impressions.parquet")
    candidates = table["candidate_ids"].to_pylist()
    candidates[7] = []
    place = table.column_names.index("candidate_ids")
    broken = table.set_column(place, "candidate_ids", pa.array(candidates, table["candidate_ids"].type))
    pq.write_table(broken, tmp_path / "broken.parquet")
    file = tmp_path / "broken.parquet"
    found = write_history([file], [file], load_schema(dataset), RetrainConfig(), tmp_path / "out", now_us=NOW_US)
    assert found.requests == 399
    assert sum(found.rejected_by_rule.values()) == 1
    assert pq.read_table(tmp_path / "out" / "rejected.parquet").num_rows == 1


def test_inputs_are_hashed_once(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "digests.json"
    found = partitions(dataset, (), cache)
    (day,) = (name for name in found if name.startswith("collected/"))
    assert set(found) == {"impressions.parquet", "user_features.parquet", "item_features.parquet", day}
    assert logs(found) == ["impressions.parquet", day]
    monkeypatch.setattr("orchestration.retrain.inputs.file_digest", lambda path: pytest.fail(f"{path} was read again"))
    assert partitions(dataset, (), cache) == found
    assert day not in partitions(dataset, ["2026-01-03"], cache)
    assert set_aside(dataset, found) == 0


def test_what_makes_a_night_new(dataset: Path, tmp_path: Path) -> None:
    found, settings = partitions(dataset, (), tmp_path / "digests.json"), Settings()
    same = night_key(found, "schema", settings, cold=False)
    assert night_key(dict(found), "schema", Settings(retrain=RetrainConfig(keep_nights=2)), cold=False) == same
    others = [
        night_key(found | {"impressions.parquet": "other"}, "schema", settings, cold=False),
        night_key(found, "other", settings, cold=False),
        night_key(found, "schema", Settings(gates=GatesConfig(max_psi=2.0)), cold=False),
        night_key(found, "schema", Settings(retrain=RetrainConfig(max_requests=10)), cold=False),
        night_key(found, "schema", settings, cold=True),
    ]
    assert len({same, *others}) == 6


def test_two_at_once_are_refused_and_the_holder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run" / "retrain" / "lock"
    with alone(file), pytest.raises(MismatchError, match=f"process {os.getpid()} on .* since 20"), alone(file):
        pass
    with alone(file):  # free again
        pass


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86_400), ("1d", 86_400), ("1h30m", 5400)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "24", "h", "0m", "-1h", "1.5h", "30m1h", "1h "])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigurationError, match="duration"):
        parse_duration(text)


class FakeClock:
    """Time that passes when someone waits; waiting ends early now and then, as it does."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits = 0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits += 1
        self.now += seconds / 2 if self.waits % 3 == 0 else seconds


def test_work_of_any_length_moves_no_beat() -> None:
    clock = FakeClock()
    starts = []
    for beat in beats(timedelta(hours=24), clock=clock, wait=clock.wait):
        starts.append((beat, round((clock.now - 1000.0) / 86_400, 6)))
        clock.now += 2.5 * 86_400 if beat == 2 else 5000.0
        if beat > 4:
            break
    assert starts == [(0, 0), (1, 1), (2, 2), (5, 5)]  # the beats that passed during a long night are left out


def test_a_schedule_survives_a_night_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    nights: Iterator[Any] = iter([TrainingError("lost a worker"), Outcome("done", "fine"), ValueError("odd")])
    told: list[Outcome] = []

    def night() -> Outcome:
        following = next(nights, None)
        if following is None:
            raise KeyboardInterrupt
        if isinstance(following, Exception):
            raise following
        assert isinstance(following, Outcome)
        return following

    with pytest.raises(KeyboardInterrupt):
        keep_running(timedelta(hours=1), night, told.append, lambda _: iter(range(9)))
    assert [o.reason for o in told] == ["fine"]
    said = capsys.readouterr().err
    assert "lost a worker" in said
    assert "odd" in said


def frozen(id_: str, key: str = "k") -> Frozen:
    return Frozen(id_, key, 1, {"impressions.parquet": "hash"}, ("impressions.parquet",), False, None, None)


def test_the_state_outlives_its_process(tmp_path: Path) -> None:
    state = State(tmp_path / "retrain")
    assert (state.current(), state.outcomes(), state.champion()) == (None, [], None)
    assert state.night_id("abcdef0123") == "0001-abcdef01"
    state.begin(frozen("0001-abcdef01"))
    again = State(tmp_path / "retrain")
    assert again.current() == again.inputs_of("0001-abcdef01") == frozen("0001-abcdef01")
    assert again.night_id("abcdef0123") == "0001-abcdef01"  # the same inputs: the same night
    assert again.night_id("ffff000000") == "0002-ffff0000"
    gate = Gate("data", False, "too little", {"requests": 3.0})
    bundle = tmp_path / "retrain" / "0001-abcdef01" / "bundle"
    stopped = Outcome("stopped", "gate data", "0001-abcdef01", (gate,), bundle, steps={"encode": 1.5})
    assert outcome_from(json.loads(json.dumps(stopped.to_json()))) == stopped
    again.end(frozen("0001-abcdef01"), stopped)
    assert (state.current(), state.outcome_of("k"), state.outcome_of("other")) == (None, stopped, None)
    state.end(frozen("0001-abcdef01"), Outcome("done", "fine"))
    assert [o.status for o in state.outcomes()] == ["done"]  # the same night, ended anew
    state.crown(bundle, "sha")
    assert state.champion() == (bundle, "sha")
    state.crown(tmp_path / "elsewhere", "other")
    assert state.champion() == (tmp_path / "elsewhere", "other")


def test_a_run_folder_can_be_moved(tmp_path: Path) -> None:
    state = State(tmp_path / "before" / "retrain")
    bundle = state.folder / "0001-abcdef01" / "bundle"
    state.begin(frozen("0001-abcdef01"))
    state.end(frozen("0001-abcdef01"), Outcome("done", "fine", "0001-abcdef01", bundle=bundle))
    state.crown(bundle, "sha")
    (tmp_path / "before").rename(tmp_path / "after")
    moved, there = State(tmp_path / "after" / "retrain"), tmp_path / "after" / "retrain" / "0001-abcdef01" / "bundle"
    assert moved.champion() == (there, "sha")
    assert [o.bundle for o in moved.outcomes()] == [there]


def test_damaged_state_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "current.json").write_text("{")
    with pytest.raises(DataError, match=r"current\.json"):
        State(tmp_path).current()


def test_a_step_is_done_once(tmp_path: Path) -> None:
    said: list[str] = []
    calls: list[str] = []
    output = tmp_path / "made"

    def do() -> dict[str, Any]:
        calls.append("done")
        output.touch()
        return {"rows": 3}

    def steps(inputs: Any) -> Journal:
        journal = Journal(tmp_path, said.append)
        assert journal.step("encode", inputs, [output], do) == {"rows": 3}
        return journal

    assert [e.kept for e in steps("a").entries] == [False]
    assert [e.kept for e in steps("a").entries] == [True]
    assert [e.kept for e in steps("b").entries] == [False]  # other inputs
    output.unlink()
    assert [e.kept for e in steps("b").entries] == [False]  # the output is gone
    assert len(calls) == 3
    (timeline,) = json.loads((tmp_path / "timeline.json").read_text())
    assert (timeline["step"], timeline["kept"]) == ("encode", False)


def test_the_first_gate_that_does_not_hold_ends_the_night(tmp_path: Path) -> None:
    journal = Journal(tmp_path, lambda _: None)
    holds, fails = Gate("drift", True, "fine"), Gate("feedback", False, "click: 9 a list", {"click_now": 9.0})
    with pytest.raises(GateNotPassedError, match="gate feedback: click: 9 a list"):
        journal.gate("drift gates", "inputs", lambda: [holds, fails])
    assert journal.gates == [holds, fails]
    with pytest.raises(GateNotPassedError):  # looked up, not looked at again
        Journal(tmp_path, lambda _: None).gate("drift gates", "inputs", lambda: pytest.fail("again"))


@pytest.mark.parametrize("forgotten", [False, True])
def test_intermediate_files_of_old_nights_go(tmp_path: Path, forgotten: bool) -> None:
    state, dataset = State(tmp_path / "retrain"), tmp_path / "data"
    dataset.mkdir()
    for number in (1, 2, 3):
        state.begin(frozen(f"000{number}-abcdef01"))
        for name in (*INTERMEDIATE, "bundle", "evaluator"):
            (state.folder / f"000{number}-abcdef01" / name).mkdir()
    state.abandon()
    if forgotten:
        (dataset / "forgotten.jsonl").write_text("{}\n")
    prune(state, dataset, keep_nights=2)
    nights = sorted(state.folder.glob("000*"))
    assert [(n / "training_set").is_dir() for n in nights] == [False, not forgotten, not forgotten]
    assert all((n / "bundle").is_dir() and (n / "evaluator").is_dir() for n in nights)


def test_lineage_names_code_and_data(tmp_path: Path) -> None:
    assert code_version().startswith("0.")
    few, many = ({f"file-{i}": "0" * 64 for i in range(count)} for count in (2, 400))
    tags = data_lineage(few, tmp_path / "inputs.json")
    assert json.loads(tags["data_files"]) == few
    assert "data_files" not in data_lineage(many, tmp_path / "inputs.json")
    assert data_lineage(many, tmp_path / "inputs.json")["data_partitions"] == "400"


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("nothing_new", 0), ("stopped", 3)])
def test_the_exit_code_tells_a_gate_that_does_not_hold(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, status: Any, code: int
) -> None:
    monkeypatch.setattr(pipeline, "retrain", lambda *_, **__: Outcome(status, "so it ended", "0001-abcdef01"))
    done = CliRunner().invoke(cli.app, ["retrain", str(dataset.parent), "--json"])
    assert done.exit_code == code, done.output
    assert json.loads(done.stdout.splitlines()[-1])["status"] == status
    assert "so it ended" in CliRunner().invoke(cli.app, ["retrain", str(dataset.parent)]).stdout


def test_activation_needs_a_redis(dataset: Path) -> None:
    done = CliRunner().invoke(cli.app, ["retrain", str(dataset.parent), "--activate"])
    assert isinstance(done.exception, ConfigurationError)


def test_nothing_heavy_is_imported_before_it_is_known_that_something_is_new() -> None:
    script = "import sys, orchestration.retrain.pipeline; print(*{'torch', 'scipy', 'feast', 'ray', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
