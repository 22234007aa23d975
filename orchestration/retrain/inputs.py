"""The files a night learns from, each with the hash of its content."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degre_prod.artefact import digest, file_digest, write_json
from orchestration.collect.collector import FOLDER
from orchestration.collect.files import collected_files, read_commit

if TYPE_CHECKING:
    from degre_prod.config import Settings

LOG = "impressions.parquet"
TABLES = ("user_features.parquet", "item_features.parquet")
SECTIONS = ("data", "evaluator", "mining", "generator", "judge", "retrain")  # settings that change what is learnt
FORMAT = 1  # part of every key: raise it when the same inputs give other outputs


def partitions(dataset: Path, leave_out_days: Iterable[str], cache: Path) -> dict[str, str]:
    """sha256 by path within the data set: its own log, the feature tables, collected files that confirm a list or had
    anything to reject.

    Files of days left out are not among them. A file whose size and time of change are those in `cache` is not read again.
    """
    left_out = {f"day={day}" for day in leave_out_days}
    collected = [f for f in collected_files(dataset / FOLDER) if f.parent.name not in left_out]
    known = _known(cache)
    fresh: dict[str, dict[str, Any]] = {}
    for file in [*(dataset / name for name in (LOG, *TABLES)), *collected]:
        if not file.is_file():
            continue
        name, status = str(file.relative_to(dataset)), file.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
        entry = known.get(name)
        if entry is None or entry["stamp"] != stamp:
            entry = {"stamp": stamp, "sha256": file_digest(file), "telling": _telling(file, dataset)}
        fresh[name] = entry
    if fresh != known:
        write_json(cache, fresh)
    return {name: entry["sha256"] for name, entry in fresh.items() if entry["telling"]}


def logs(partitions: Iterable[str]) -> list[str]:
    """Those that are impression log, not features."""
    return [name for name in partitions if name not in TABLES]


def made_from(
    partitions: dict[str, str], schema_digest: str, settings: Settings, *, cold: bool, champion: str | None
) -> str:
    """Hash of all that a night's artefacts depend on. `champion`: manifest sha256 of the bundle it starts from."""
    return digest("night", FORMAT, _learnt(partitions, schema_digest, settings, cold), champion)


def night_key(partitions: dict[str, str], schema_digest: str, settings: Settings, *, cold: bool) -> str:
    """Hash by which a second start knows that nothing is new: data, settings, gates; not the champion, which a night
    changes itself."""
    gates = settings.gates.model_dump(mode="json")
    return digest("inputs", FORMAT, _learnt(partitions, schema_digest, settings, cold), gates)


def _learnt(partitions: dict[str, str], schema_digest: str, settings: Settings, cold: bool) -> list[Any]:
    sections = {name: getattr(settings, name).model_dump(mode="json") for name in SECTIONS}
    sections["retrain"].pop("keep_nights")
    return [partitions, schema_digest, sections, cold]


def set_aside(dataset: Path, names: Iterable[str]) -> int:
    """Entries behind these collected files that were no record or did not fit the schema: they are in no row."""
    return sum(read_commit(dataset / name).counts.rejected for name in names if name.startswith(FOLDER))


def _telling(file: Path, dataset: Path) -> bool:
    if not file.is_relative_to(dataset / FOLDER):
        return True
    counts = read_commit(file).counts
    return counts.confirmed + counts.rejected > 0


def _known(cache: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads(cache.read_text()))
    except (OSError, ValueError):
        return {}
