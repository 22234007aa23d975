"""Outputs that are written aside and then renamed, and say what they were made from.

A finished artefact is a folder with `made_from.json`: the hash of everything it depends on. A step asks `finished`
and does nothing when the answer is yes; otherwise it works in `workplace`, which survives an interruption so that the
step can resume, and calls `publish`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from degre_prod.errors import DataError

MARK = "made_from.json"


def digest(*parts: Any) -> str:
    """sha256 over the canonical JSON of the parts (strings, numbers, lists, dicts, None)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def finished(folder: Path, made_from: str) -> bool:
    """Whether `folder` was published from exactly these inputs."""
    try:
        return bool(json.loads((folder / MARK).read_text())["made_from"] == made_from)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def made_from(folder: Path) -> str:
    """The hash a published artefact carries; raises DataError when it isn't one."""
    try:
        return str(json.loads((folder / MARK).read_text())["made_from"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError("not finished yet: run the step that makes it first", file=str(folder)) from None


def workplace(folder: Path, made_from: str) -> Path:
    """The folder to work in until `publish`; the same one again after an interruption, if the inputs are the same."""
    path = folder.with_name(f".{folder.name}-{made_from[:12]}")
    for stale in folder.parent.glob(f".{glob.escape(folder.name)}-" + "[0-9a-f]" * 12):
        if stale != path:
            shutil.rmtree(stale, ignore_errors=True)
    path.mkdir(parents=True, exist_ok=True)
    return path


def publish(folder: Path, made_from: str) -> None:
    """Turn the workplace into the artefact, replacing an older one."""
    path = workplace(folder, made_from)
    for half_written in path.rglob(".*"):  # by `written_aside`, when a process was killed
        if half_written.is_file():
            half_written.unlink()
    write_json(path / MARK, {"made_from": made_from})
    replace_folder(path, folder)


def replace_folder(path: Path, folder: Path) -> None:
    """Rename `path` to `folder`; an older folder of that name is moved out of the way first and deleted last."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    path.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well and removed when it doesn't."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o644)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(document, indent=2, sort_keys=True, default=str) + "\n")
