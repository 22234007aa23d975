"""Intermediate files of earlier nights go; bundles, networks, reports and records stay."""

from __future__ import annotations

import shutil
from pathlib import Path

from orchestration.collect.forget import RECORD
from orchestration.retrain.state import State

INTERMEDIATE = ("log", "training_set", "encoded", "mined", "judge")


def prune(state: State, dataset: Path, keep_nights: int) -> list[Path]:
    """Remove logged rows and what was encoded from them of all but the newest `keep_nights`; of every night that ended before
    a user was last erased (`degre forget`), for those are copies. Returns what was removed."""
    nights = sorted(p.parent for p in state.folder.glob("[0-9]*-*/inputs.json"))
    current = state.current()
    removed = []
    for number, night in enumerate(reversed(nights)):
        if current is not None and night.name == current.id:
            continue
        if number >= keep_nights or _before(night, dataset / RECORD):
            for name in INTERMEDIATE:
                if (night / name).is_dir():
                    shutil.rmtree(night / name)
                    removed.append(night / name)
    return removed


def _before(night: Path, record: Path) -> bool:
    return record.is_file() and (night / "inputs.json").stat().st_mtime_ns < record.stat().st_mtime_ns
