"""Event accounting from both ends: what the market's driver sent and was told, against what the collector wrote.

Nothing here is true by definition. `served` and `feedback` are counted where they were sent, `dropped` by the replicas, the
rest where it was written; `lost` is what was sent and is nowhere, `twice` what is there more than once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from orchestration.bench.loop_deliveries import FATES
from orchestration.collect.files import collected_files

SENT = "sent.json"


@dataclass(frozen=True)
class Sent:
    """What the driver knows of its days: lists by request id as (shown ids, clicked ids), those of them whose feedback went
    out in time, units of feedback acknowledged by the fate they must meet, lists that replicas say they dropped, and what
    answered."""

    lists: dict[str, tuple[list[int], list[int]]]
    kept: frozenset[str]
    fates: Mapping[str, int]
    dropped: int
    sources: Mapping[str, int]


def read_sent(folders: Sequence[Path]) -> Sent:
    """The ledgers of some days, added up."""
    lists: dict[str, tuple[list[int], list[int]]] = {}
    kept: set[str] = set()
    fates: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    dropped = 0
    for folder in folders:
        ledger = json.loads((folder / SENT).read_text())
        lists |= {name: (shown, clicked) for name, (shown, clicked) in ledger["lists"].items()}
        kept.update(ledger["kept"])
        fates.update(ledger["fates"])
        sources.update(ledger["sources"])
        dropped += ledger["dropped"]
    return Sent(lists, frozenset(kept), fates, dropped, sources)


def accounts(sent: Sent, collected: Path, found: Mapping[str, int], cut: int | None) -> dict[str, Any]:
    """The `events` of the benchmark and what else was compared.

    `found`: the collector's own count of units by fate · `cut`: entries that Redis cut from its streams unread. `misjudged`:
    fates that the collector counts otherwise than they were meant; `differing`: lists sent in time whose row on disk shows
    other items or other clicks.
    """
    rows = Counter[str]()
    differing = 0
    for file in collected_files(collected):
        table = pq.read_table(file, columns=["request_id", "shown_ids", "feedback", "confirmed"])
        for row in table.to_pylist():
            rows[row["request_id"]] += 1
            differing += row["request_id"] in sent.kept and not _same(row, *sent.lists[row["request_id"]])
    logged = sum(name in rows for name in sent.lists)
    feedback = sum(sent.fates.values())
    lists_missing = len(sent.lists) - logged - sent.dropped
    feedback_missing = feedback - sum(found[fate] for fate in FATES)
    surplus_rows = sum(rows.values()) - logged  # repeats, and lists that nobody was sent
    events = {
        "served": len(sent.lists),
        "logged": logged,
        "dropped": sent.dropped,
        "feedback": feedback,
        **{fate: found[fate] for fate in FATES},
        "lost": max(lists_missing, 0) + max(feedback_missing, 0) + (cut or 0),
    }
    misjudged = {fate: found[fate] - sent.fates.get(fate, 0) for fate in FATES}
    return {
        "events": events,
        "twice": max(-lists_missing, 0) + max(-feedback_missing, 0) + surplus_rows,
        "misjudged": {fate: more for fate, more in misjudged.items() if more},
        "differing": differing,
        "sources": dict(sent.sources),
    }


def _same(row: Mapping[str, Any], shown_ids: list[int], clicked_ids: list[int]) -> bool:
    clicked = [item for item, mark in zip(row["shown_ids"], row["feedback"]["click"], strict=True) if mark > 0]
    return bool(row["confirmed"]) and row["shown_ids"] == shown_ids and clicked == clicked_ids
