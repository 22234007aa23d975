"""The command line: help everywhere and at once, our errors on one line, nothing heavy imported on the way."""

from __future__ import annotations

import inspect
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import small_schema
from typer.main import get_command

import degre_prod.errors as errors
from degre_prod.artefact import publish, workplace
from orchestration import cli

ROOT: Any = get_command(cli.app)
HEAVY = ("torch", "ray", "feast", "pandas", "pyarrow", "matplotlib", "numpy", "onnxruntime", "scipy", "fastapi")


def commands(group: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("path", "command"), [pytest.param(*c, id=" ".join(c[0])) for c in commands()])
def test_every_command_has_help_and_an_example_that_it_would_take(path: tuple[str, ...], command: Any) -> None:
    summary, *_ = command.help.split("\n")
    assert summary.endswith((".", ":")), summary
    examples = [line for line in command.help.splitlines() if line.startswith("Example: ")]
    assert examples, command.help
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for example in examples:
        words = shlex.split(example.removeprefix("Example: "))
        assert words[: len(path) + 1] == ["degre", *path]
        assert {w for w in words if w.startswith("--")} <= known
    for parameter in command.params:
        assert parameter.help or parameter.name in ("as_json", "help"), parameter.name


def test_every_group_has_help() -> None:
    for name, group in ROOT.commands.items():
        assert group.help, name


def test_help_answers_within_a_second() -> None:
    program = Path(sys.executable).with_name("degre")
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
        after = os.times()  # processor time: other tests may be running
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert "demo" in done.stdout
    assert 0 < statistics.median(seconds) < 1.0


def loaded(module: str) -> set[str]:
    script = f"import sys; import {module}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("orchestration.cli", set()),
        ("serving.client", set()),
        ("degre_prod.config", set()),
        ("degre_prod.bundle", {"numpy"}),
        ("serving.engine", {"numpy"}),
    ],
)
def test_importing_brings_in_nothing_heavy(module: str, allowed: set[str]) -> None:
    assert loaded(module) <= allowed


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["degre", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    code = end.value.code
    assert isinstance(code, int)
    return code, capsys.readouterr().err


def unfinished(folder: Path) -> Path:
    """A run whose data set has nothing but a schema."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "schema.yaml").write_text(small_schema("int64").to_yaml())
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bundle", "verify", "EMPTY"), "is not a bundle"),
        (("bundle", "show", "EMPTY"), "is not a bundle"),
        (("evaluate", "EMPTY"), "no data set here"),
        (("evaluate", "RUN"), "run `degre train generator` first"),
        (("mine", "RUN", "--config", "ALONE"), "not finished yet"),
        (("train", "generator", "RUN", "--config", "ALONE"), "not finished yet"),
        (("mine", "RUN", "--config", "WRONG"), "mining.beam is not a setting; did you mean mining.beams"),
        (("demo", "--data", "NOWHERE", "--out", "OUT"), "no such file or folder"),
        (("rerank", "--file", "NOWHERE"), "cannot read the request"),
    ],
)
def test_our_errors_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: tuple[str, ...],
    said: str,
) -> None:
    places = {name: tmp_path / name.lower() for name in ("EMPTY", "RUN", "ALONE", "WRONG", "NOWHERE", "OUT")}
    places["EMPTY"].mkdir()
    unfinished(places["RUN"])
    places["ALONE"].write_text("scaling: {num_workers: 0}")  # without Ray
    places["WRONG"].write_text("mining: {beam: 3}")
    code, err = run(capsys, monkeypatch, *(places.get(w, w) for w in words))
    lines = [line for line in err.splitlines() if not line.startswith("▸")]  # the demo says its stages
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("degre: ")
    assert said in lines[0]


def test_mining_by_another_evaluator_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = unfinished(tmp_path / "run")
    for name in ("encoded", "evaluator", "mined"):
        workplace(folder / name, "a" * 64)
        publish(folder / name, "a" * 64)
    (tmp_path / "alone.yaml").write_text("scaling: {num_workers: 0}")
    code, err = run(capsys, monkeypatch, "train", "generator", folder, "--config", tmp_path / "alone.yaml")
    assert code == 2
    assert "was not mined by the evaluator" in err


def test_an_interruption_says_that_the_work_is_not_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(_folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("degre_prod.bundle.manifest.read_manifest", interrupted)
    code, err = run(capsys, monkeypatch, "bundle", "show", tmp_path)
    assert code == 130
    assert err == "degre: interrupted; the same command goes on where it was\n"


def test_the_tree_of_exceptions() -> None:
    tree = {
        name: kind.__base__.__name__
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, BaseException) and kind.__module__ == errors.__name__
    }
    assert tree == {
        "DegreError": "Exception",
        "ConfigurationError": "DegreError",
        "SchemaError": "DegreError",
        "DataError": "DegreError",
        "FeatureError": "DegreError",
        "MismatchError": "DegreError",
        "BundleError": "DegreError",
        "ConstraintError": "DegreError",
        "TrainingError": "DegreError",
        "ServiceError": "DegreError",
        "JobError": "DegreError",
    }


def test_a_data_error_says_where() -> None:
    error = errors.DataError("too long", file="a.parquet", row=3, column="shown_ids", rule="shown_too_long")
    assert str(error) == "too long (file a.parquet, row 3, column shown_ids, rule shown_too_long)"
    assert (error.file, error.row, error.column, error.rule) == ("a.parquet", 3, "shown_ids", "shown_too_long")
    assert str(errors.DataError("too long", row=0)) == "too long (row 0)"
