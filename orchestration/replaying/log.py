"""Which logged requests are replayed: those of the last days of the log, confirmed ones, that keep the contract."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from degre_prod.artefact import digest, file_digest, finished, publish, workplace
from degre_prod.errors import DataError
from degre_prod.validation import LOG
from orchestration.collect.collector import FOLDER
from orchestration.collect.files import collected_files

if TYPE_CHECKING:
    import pyarrow as pa

    from degre_prod.schema import DataSchema

DAY_US = 86_400_000_000
_FORMAT = 1


@dataclass(frozen=True)
class Window:
    """The requests from `from_us` to `to_us` (the newest one; µs since 1970 UTC). `rejected` break the contract, of the
    `unconfirmed` nothing says that the list was shown: neither is replayed."""

    requests: int
    from_us: int
    to_us: int
    rejected: int
    unconfirmed: int


def recent_log(dataset: Path, schema: DataSchema, days: float, out: Path) -> Window:
    """Write the folder `out` with `log.parquet`: the newest `days` of the data set's log, collected lists included.

    Does nothing when it was made from the same files. Raises DataError when no request is left.
    """
    files = log_files(dataset)
    key = digest("recent_log", _FORMAT, schema.digest(), days, [file_digest(f) for f in files])
    if not finished(out, key):
        place = workplace(out, key)
        _write(files, schema, days, place)
        publish(out, key)
    return Window(**json.loads((out / "window.json").read_text()))


def log_files(dataset: Path) -> list[Path]:
    """The data set's own log, and what was collected."""
    own = dataset / LOG
    given = sorted(own.glob("*.parquet")) if own.is_dir() else [own] if own.is_file() else []
    files = [*given, *collected_files(dataset / FOLDER)]
    if not files:
        raise DataError(f"no log here: neither {LOG} nor collected lists (`degre collect`)", file=str(dataset))
    return files


def _write(files: list[Path], schema: DataSchema, days: float, place: Path) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from degre_prod.artefact import write_json
    from degre_prod.validation import check_log

    to_us = max(_span(file)[1] for file in files)
    from_us = to_us - int(days * DAY_US)
    every = place / "every.parquet"
    with pq.ParquetWriter(every, _columns(schema)) as writer:
        for file in files:
            if _span(file)[1] > from_us:
                writer.write_table(_newer(file, schema, from_us))
    checked = check_log(every, schema, now_us=to_us + 3650 * DAY_US)  # not a question of the present here
    shown = pc.fill_null(checked.accepted["confirmed"], True)
    kept = checked.accepted.filter(shown).sort_by([("event_timestamp", "ascending"), ("request_id", "ascending")])
    every.unlink()
    if kept.num_rows == 0:
        raise DataError(f"no confirmed request in the last {days:g} days of the log", file=str(files[0].parent))
    pq.write_table(kept, place / "log.parquet")
    window = Window(
        requests=kept.num_rows,
        from_us=from_us,
        to_us=to_us,
        rejected=checked.report.rejected,
        unconfirmed=checked.accepted.num_rows - kept.num_rows,
    )
    write_json(place / "window.json", vars(window))


def _columns(schema: DataSchema) -> pa.Schema:
    import pyarrow as pa

    from degre_prod.records import impression_columns

    return pa.schema([(c.name, c.type) for c in impression_columns(schema)])


def _newer(file: Path, schema: DataSchema, from_us: int) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    from degre_prod.conform import conform, read_parquet
    from degre_prod.records import impression_columns

    wanted = [(c.name, c.type, c.required) for c in impression_columns(schema)]
    table = conform(read_parquet(file), wanted, file=str(file))
    return table.filter(pc.greater(table["event_timestamp"].cast(pa.int64()), from_us))


def _span(file: Path) -> tuple[int, int]:
    """The first and the last moment of a file, µs since 1970; (0, 0) for an empty one."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        moments = pq.read_table(file, columns=["event_timestamp"])["event_timestamp"]
        found = pc.min_max(moments.cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.int64())).as_py()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"no log with an event_timestamp: {error}", file=str(file)) from None
    return (found["min"] or 0, found["max"] or 0)
