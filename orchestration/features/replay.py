"""Replaying a log online: the store holds, at every moment of the log's own time, what the point-in-time join would give."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestration.features.store import definitions

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore, FeatureView

_BATCH = 5000


class OnlineFeed:
    """Pushes feature rows to the online store as the log's time goes on.

    Clears both feature tables in the store's Redis and writes their state at `start_us`, whatever was there: for a
    replay's own Redis, never a live one. `store` comes from `open_store` with a Redis URL; it needs no materialisation.

    A row counts from the moment it had both happened and arrived: max(event_timestamp, created_timestamp). Among an
    entity's rows so far the newest (event_timestamp, created_timestamp) holds, exactly as in the training set.
    """

    def __init__(self, dataset: Path, store: FeatureStore, start_us: int) -> None:
        from feast.infra.online_stores.helpers import get_online_store_from_config

        self._config = copy.deepcopy(store.config)
        # Feast's own check would drop a correction: a row with the same event time that arrived later. The feed writes in
        # the right order, alone, so nothing older can overwrite anything newer.
        self._config.online_store.skip_dedup = True
        self._online = get_online_store_from_config(self._config.online_store)
        built = definitions(dataset)
        self._tables = [_table(dataset, view) for view in (built.user_view, built.item_view)]
        for table in self._tables:
            self._online.delete_table(self._config, table.view)
        self.advance(start_us)

    def advance(self, to_us: int) -> int:
        """Push every row that came to count up to and including `to_us` (µs since 1970 UTC); returns rows written.

        Time only goes forward: a `to_us` before the last one writes nothing.
        """
        return sum(self._push(table, to_us) for table in self._tables)

    def _push(self, table: _Table, to_us: int) -> int:
        from feast.utils import _convert_arrow_to_proto

        upto = int(np.searchsorted(table.visible_us, to_us, side="right"))
        if upto <= table.done:
            return 0
        # The latest row of an entity is the last one: the first occurrence, read backwards.
        _, backwards = np.unique(table.entity[table.done : upto][::-1], return_index=True)
        latest = np.sort(upto - 1 - backwards)
        for start in range(0, len(latest), _BATCH):
            rows = table.rows.take(latest[start : start + _BATCH]).combine_chunks().to_batches()[0]
            keys = {entity.name: entity.dtype.to_value_type() for entity in table.view.entity_columns}
            self._online.online_write_batch(
                self._config, table.view, _convert_arrow_to_proto(rows, table.view, keys), progress=None
            )
        table.done = upto
        return len(latest)


@dataclass
class _Table:
    """Rows that ever hold, by the time they begin to; `entity` is a code of the id, `done` how many were pushed."""

    view: FeatureView
    rows: pa.Table
    visible_us: np.ndarray
    entity: np.ndarray
    done: int = 0


def _table(dataset: Path, view: FeatureView) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    key = view.entity_columns[0].name
    columns = [key, *(field.name for field in view.features), "event_timestamp", "created_timestamp"]
    rows = pq.read_table(dataset / f"{view.name}.parquet", columns=columns).combine_chunks()
    event = rows["event_timestamp"].cast(pa.int64()).to_numpy()
    created = rows["created_timestamp"].cast(pa.int64()).to_numpy()
    entity = rows[key].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    visible = np.maximum(event, created)

    age = np.empty(len(event), np.int64)  # position in the order of (event, created): the higher one holds
    age[np.lexsort((created, event))] = np.arange(len(event))
    order = np.lexsort((age, visible, entity))
    # Codes grow by entity, so one running maximum serves all: a row holds if it beats what its entity had before.
    code = entity[order] * len(event) + age[order]
    best_before = np.concatenate([[-1], np.maximum.accumulate(code)[:-1]]) if len(code) else code
    holds = order[code > best_before]
    holds = holds[np.lexsort((age[holds], visible[holds]))]
    return _Table(view, rows.take(holds), visible[holds], entity[holds])
