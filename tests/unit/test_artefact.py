"""Artefacts: whole or not there, resumable, and replaced without a moment in which nothing can be recovered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from degre_prod.artefact import (
    MARK,
    digest,
    file_digest,
    finished,
    made_from,
    publish,
    replace_folder,
    workplace,
    write_json,
    write_text,
    written_aside,
)
from degre_prod.errors import DataError

ONE, TWO = digest("one"), digest("two")


def make(folder: Path, key: str, text: str) -> None:
    (workplace(folder, key) / "result.txt").write_text(text)
    publish(folder, key)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_a_digest_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2, None]}) == digest({"b": [2, None], "a": 1})
    assert len({digest(1), digest("1"), digest(1, 2), digest([1, 2]), digest(None), digest()}) == 6


def test_published_is_finished_for_its_inputs_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mined"
    assert not finished(folder, ONE)
    (workplace(folder, ONE) / "result.txt").write_text("first")
    assert not finished(folder, ONE)
    assert not folder.exists()
    publish(folder, ONE)
    assert finished(folder, ONE)
    assert not finished(folder, TWO)
    assert made_from(folder) == ONE
    assert names(tmp_path) == {"mined"}
    assert names(folder) == {"result.txt", MARK}


def test_a_newer_artefact_replaces_the_older_one_whole(tmp_path: Path) -> None:
    make(tmp_path / "mined", ONE, "first")
    (tmp_path / "mined" / "more.txt").write_text("only in the first")
    make(tmp_path / "mined", TWO, "second")
    assert (tmp_path / "mined" / "result.txt").read_text() == "second"
    assert names(tmp_path / "mined") == {"result.txt", MARK}
    assert names(tmp_path) == {"mined"}


def test_work_survives_an_interruption_but_not_other_inputs(tmp_path: Path) -> None:
    folder = tmp_path / "mined"
    (workplace(folder, ONE) / "half.txt").write_text("half")
    assert (workplace(folder, ONE) / "half.txt").read_text() == "half"
    assert not any(workplace(folder, TWO).iterdir())
    assert len(list(tmp_path.iterdir())) == 1


def test_the_workplace_of_a_neighbour_with_a_longer_name_is_left_alone(tmp_path: Path) -> None:
    neighbours = [workplace(tmp_path / name, ONE) for name in ("run-2", "run-2-b", "run[1]", "rerun")]
    for name in ("run", "run-2", "run[1]"):
        workplace(tmp_path / name, TWO)
    assert [n.exists() for n in neighbours] == [False, True, False, True]


@pytest.mark.parametrize("which", [1, 2])
def test_interrupted_while_replacing_the_next_attempt_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """A crash before the first rename and between the two."""
    folder = tmp_path / "mined"
    make(folder, ONE, "first")
    place = workplace(folder, TWO)
    (place / "result.txt").write_text("second")
    calls = 0
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == which:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(KeyboardInterrupt):
            publish(folder, TWO)
    assert finished(folder, ONE) == (which == 1)
    assert not finished(folder, TWO)
    assert (workplace(folder, TWO) / "result.txt").read_text() == "second"
    publish(folder, TWO)
    assert finished(folder, TWO)
    assert names(tmp_path) == {"mined"}


def test_what_a_killed_process_left_half_written_is_not_published(tmp_path: Path) -> None:
    place = workplace(tmp_path / "mined", ONE)
    (place / ".shard-0.npz.abc").write_text("ha")
    (place / "shard-0.npz").write_text("whole")
    publish(tmp_path / "mined", ONE)
    assert names(tmp_path / "mined") == {"shard-0.npz", MARK}


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "{"])
def test_a_folder_without_a_readable_mark_is_not_finished(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / MARK).write_text(text)
    assert not finished(tmp_path, ONE)
    with pytest.raises(DataError, match="not finished yet"):
        made_from(tmp_path)


def test_replacing_a_folder_needs_none_there(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / ".bundle.old").mkdir()  # from a crash
    replace_folder(tmp_path / "new", tmp_path / "bundle")
    assert names(tmp_path) == {"bundle"}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.txt"
    write_text(file, "first")

    def interrupted() -> None:
        with written_aside(file) as aside:
            aside.write_text("sec")
            assert file.read_text() == "first"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "first"
    assert names(file.parent) == {"file.txt"}
    with pytest.raises(ZeroDivisionError), written_aside(tmp_path / "other.txt"):
        raise ZeroDivisionError
    assert not (tmp_path / "other.txt").exists()


def test_json_is_canonical_enough_to_compare_and_others_may_read_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [None]})
    write_json(tmp_path / "b.json", {"a": [None], "b": 1})
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert file_digest(tmp_path / "a.json") == file_digest(tmp_path / "b.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None], "b": 1}
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644
