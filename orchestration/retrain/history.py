"""Which logged requests a night learns from: confirmed ones, the newest of them, and where they are split by time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degre_prod.artefact import written_aside
from degre_prod.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from degre_prod.config import RetrainConfig
    from degre_prod.schema import DataSchema

MIN_HELDOUT = 200  # with fewer the gates' figures say little
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class History:
    """`requests` that are learnt from, `new` of them since the champion (all of them without one). `unconfirmed`: lists
    that nothing says were shown; `older`: confirmed ones before the history begins. Moments are µs since 1970 UTC: the
    first and the last request, the first new one, and where the held-out parts begin."""

    requests: int
    new: int
    unconfirmed: int
    older: int
    rejected_by_rule: dict[str, int]
    from_us: int
    to_us: int
    new_from_us: int
    validation_us: int
    heldout_us: int

    @property
    def boundaries(self) -> tuple[int, int]:
        """Where validation and the held-out newest part begin."""
        return self.validation_us, self.heldout_us

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def write_history(
    files: Sequence[Path], new: Iterable[Path], schema: DataSchema, settings: RetrainConfig, out: Path, *, now_us: int
) -> History:
    """Write the chosen requests into `out/log.parquet`, those that break a rule into `out/rejected.parquet`.

    `files`: impression logs, oldest knowledge first (of two rows with one request id the first is kept); `new`: those the
    champion was not trained on. Raises DataError where no request is left.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    reach, unconfirmed = _times(files, now_us)
    begin_us = _begin(reach, settings)
    fresh = set(new)
    parts, rejected, new_R = [], [], []
    rules: dict[str, int] = {}
    for file in files:
        table, refused, counts = _usable(file, schema, begin_us, now_us)
        for rule, count in counts.items():
            rules[rule] = rules.get(rule, 0) + count
        parts.append(table)
        rejected.append(refused)
        new_R.append(np.full(table.num_rows, file in fresh))
    table, is_new = pa.concat_tables(parts), np.concatenate(new_R)
    first = _first_of_each(table["request_id"])
    table, is_new = table.filter(pa.array(first)), is_new[first]
    if table.num_rows == 0:
        raise DataError(
            "no confirmed request that keeps the contract; `degre data validate` says more", file=str(files[0])
        )
    times = _microseconds(table)
    order = np.argsort(times, kind="stable")
    table, times, is_new = table.take(pa.array(order)), times[order], is_new[order]
    if not is_new.any():
        is_new[:] = True
    for name, rows in (("log.parquet", table), ("rejected.parquet", pa.concat_tables(rejected))):
        with written_aside(out / name) as aside:
            pq.write_table(rows, aside)
    validation_us, heldout_us = split_moments(times, int(is_new.sum()), settings)
    return History(
        requests=table.num_rows,
        new=int(is_new.sum()),
        unconfirmed=unconfirmed,
        older=int((reach < begin_us).sum()),
        rejected_by_rule=rules,
        from_us=int(times[0]),
        to_us=int(times[-1]),
        new_from_us=int(times[is_new][0]),
        validation_us=validation_us,
        heldout_us=heldout_us,
    )


def earlier_requests(files: Sequence[Path], settings: RetrainConfig, *, now_us: int) -> int:
    """How many confirmed requests of these logs are in reach, by their times alone."""
    if not files:
        return 0
    times, _ = _times(files, now_us)
    return int((times >= _begin(times, settings)).sum())


def split_moments(times: np.ndarray, new: int, settings: RetrainConfig) -> tuple[int, int]:
    """Where validation and the held-out part begin: each as large as `heldout_share` of the `new` requests, at least
    MIN_HELDOUT, at most `max_heldout`, never over a fifth of all. `times` sorted. Raises DataError for too few requests."""
    wanted = min(max(round(settings.heldout_share * new), MIN_HELDOUT), settings.max_heldout, len(times) // 5)
    if (
        wanted < 1
        or times[-wanted] == times[0]
        or times[-2 * wanted] == times[-wanted]
        or times[-2 * wanted] == times[0]
    ):
        raise DataError(
            f"{len(times)} confirmed requests cannot be split by time; three parts with moments of their own are needed",
            column="event_timestamp",
        )
    return int(times[-2 * wanted]), int(times[-wanted])


def _begin(times: np.ndarray, settings: RetrainConfig) -> int:
    """Where the history begins, µs; `times` sorted."""
    begin = int(times[0]) if settings.history_days is None else int(times[-1] - settings.history_days * DAY_US)
    return max(begin, int(times[-settings.max_requests])) if len(times) > settings.max_requests else begin


def _times(files: Sequence[Path], now_us: int) -> tuple[np.ndarray, int]:
    """Event times of confirmed lists, sorted, and how many lists are unconfirmed; reads two columns."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found, unconfirmed = [], 0
    for file in files:
        columns = [n for n in ("event_timestamp", "confirmed") if n in pq.read_schema(file).names]
        table = pq.read_table(file, columns=columns)
        if "event_timestamp" not in columns or not pa.types.is_timestamp(table["event_timestamp"].type):
            raise DataError("no column event_timestamp with times in the log", file=str(file), column="event_timestamp")
        shown = _shown(table)
        unconfirmed += table.num_rows - int(pc.sum(shown).as_py() or 0)
        found.append(_microseconds(table.filter(shown)))
    times = np.sort(np.concatenate(found))
    times = times[(times > 0) & (times <= now_us)]  # null or in the future: a rule refuses them
    if len(times) == 0:
        raise DataError("no confirmed request in the log", file=str(files[0]))
    return times, unconfirmed


def _usable(file: Path, schema: DataSchema, begin_us: int, now_us: int) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """Rows of one log that are confirmed, in reach and keep every rule; those that break one; how many by rule."""
    import pyarrow as pa

    from degre_prod.validation import check_log

    checked = check_log(file, schema, now_us=now_us)
    kept = checked.accepted.filter(_shown(checked.accepted))
    kept = kept.filter(pa.array(_microseconds(kept) >= begin_us))
    return kept, checked.rejected, checked.report.rejected_by_rule


def _shown(table: pa.Table) -> pa.ChunkedArray:
    """False where a log says that nothing confirmed the list; logs from elsewhere say nothing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if "confirmed" not in table.column_names:
        return pa.chunked_array([pa.repeat(pa.scalar(True), table.num_rows)])
    return pc.fill_null(table["confirmed"], True)


def _first_of_each(ids: pa.ChunkedArray) -> np.ndarray:
    """True at the first occurrence of each value."""
    import numpy as np

    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy()
    out = np.zeros(len(codes), bool)
    out[np.unique(codes, return_index=True)[1]] = True
    return out


def _microseconds(table: pa.Table) -> np.ndarray:
    """Event times, int64 µs since 1970 UTC; null → 0."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    moments = pc.cast(table["event_timestamp"], pa.timestamp("us", "UTC"), safe=False)
    return np.asarray(pc.fill_null(pc.cast(moments, pa.int64()), 0).to_numpy(), np.int64)
