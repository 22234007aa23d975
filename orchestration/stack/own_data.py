"""The data set that is mounted into the stack: whether there is one, whether it will do, and its copy."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from degre_prod.artefact import replace_folder
from degre_prod.config import Settings
from degre_prod.errors import DataError

SCHEMA_FILE = "schema.yaml"
OWN = (SCHEMA_FILE, "impressions.parquet", "user_features.parquet", "item_features.parquet")


def has_own(own: Path, named: str = "") -> bool:
    """Whether a data set is mounted at `own`; `named` is what the user wrote for it, empty for nothing.

    Raises DataError where something is named and is no data set, or cannot be read: never learn from a simulation
    because of a slip of the pen.
    """
    try:
        there = sorted(path.name for path in own.iterdir()) if own.is_dir() else []
    except PermissionError:
        raise _unreadable(own, named) from None
    if SCHEMA_FILE in there:
        return True
    if named:
        have = ", ".join(there[:8]) or "nothing"
        raise DataError(f"OWN_DATA={named} is no data set: {SCHEMA_FILE} is missing, it holds {have}")
    return False


def take_own(own: Path, data: Path, settings: Settings, named: str = "") -> None:
    """Check a data set and copy it, whole or not at all: what is collected goes into the copy.

    Raises DataError or SchemaError, as `degre data validate` does, before anything is copied.
    """
    from degre_prod.encoding.splits import refuse_empty
    from degre_prod.validation import validate_dataset

    if missing := [name for name in OWN if not (own / name).exists()]:
        raise DataError(f"a data set has {', '.join(OWN)}; missing: {', '.join(missing)}", file=str(own))
    if any(not os.access(path, os.R_OK) for path in (own, *own.rglob("*"))):
        raise _unreadable(own, named)
    report = validate_dataset(
        own,
        now_us=time.time_ns() // 1000,
        max_rejected_share=settings.data.max_rejected_share,
        write_rejected=False,
    )
    refuse_empty(report.coverage.requests_by_split)
    aside = data.with_name(f".{data.name}.copying")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in OWN:
        (shutil.copytree if (own / name).is_dir() else shutil.copyfile)(own / name, aside / name)
    replace_folder(aside, data)


def refuse_another(own: Path, data: Path) -> None:
    """Raises DataError where the stack has learnt from another data set than the mounted one, told by their names."""
    from degre_prod.schema import load_schema

    mounted, learnt = load_schema(own).name, load_schema(data).name
    if mounted != learnt:
        raise DataError(
            f"this stack has learnt from the data set {learnt}, and {mounted} is mounted: name no OWN_DATA, or begin anew "
            "with `docker compose down --volumes`, which deletes what was learnt and collected",
            file=str(own / SCHEMA_FILE),
        )


def _unreadable(own: Path, named: str) -> DataError:
    return DataError(
        f"{named or own} cannot be read by user {os.getuid()}, as which the containers run; "
        "`chmod -R a+rX` of the folder lets it",
        file=str(own),
    )
