"""The lists that bundles make for the same requests: checked, timed, and what they are like. Indices into the candidates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from degre_prod.errors import ConstraintError

if TYPE_CHECKING:
    from degre_prod.bundle import Bundle
    from degre_prod.constraints.rules import Rules
    from degre_prod.encoding.encoder import Encoder
    from degre_prod.rows import TrainingRow

WARM_UP = 5  # decodings of each bundle before any is timed


@dataclass(frozen=True)
class Made:
    """One bundle's lists_RL (-1 past a short one), how many are not valid, and the median time of decoding one."""

    lists_RL: np.ndarray
    invalid: int
    median_ms: float


def make_lists(bundles: Sequence[Bundle], rows: Sequence[TrainingRow], length: int) -> list[Made]:
    """What each bundle answers to each request under the standing constraints of its own schema, cut at `length`.

    Bundles take turns request by request, in alternating order, so that what slows the machine slows them alike. Encoding is
    not timed. A list must keep the rules of the first bundle's schema, the newest.
    """
    from degre_prod.bundle.load import standing_rules

    lists = np.full((len(bundles), len(rows), length), -1)
    milliseconds: list[list[float]] = [[] for _ in bundles]
    invalid = [0] * len(bundles)
    for r, row in enumerate(rows):
        rules_of = [standing_rules(b.schema, row.request, row.items, length, b.trust_region) for b in bundles]
        for b in range(len(bundles)) if r % 2 else reversed(range(len(bundles))):
            bundle = bundles[b]
            encoded = bundle.encoder.encode(row.request, row.user, row.items)
            rules = rules_of[b] if bundle.follows_rules else None
            for _ in range(WARM_UP if r == 0 else 0):
                _decoded(bundle, encoded, length, rules)
            started = time.perf_counter()
            order = _decoded(bundle, encoded, length, rules)
            milliseconds[b].append((time.perf_counter() - started) * 1000)
            lists[b, r, : len(order)] = order
            invalid[b] += not _valid(order.tolist(), row, length, rules_of[0])
    return [Made(lists[b], invalid[b], statistics.median(milliseconds[b])) for b in range(len(bundles))]


def upstream_lists(rows: Sequence[TrainingRow], length: int) -> np.ndarray:
    """The upstream order, cut at `length`: (R, L)."""
    counts = np.array([len(r.request.candidate_ids) for r in rows])
    return np.where(np.arange(length) < counts[:, None], np.arange(length), -1)


def coverage(rows: Sequence[TrainingRow], lists_RL: np.ndarray) -> float:
    """Share of the items offered in any of these requests that any list shows."""
    offered = {item for row in rows for item in row.request.candidate_ids}
    shown = {
        row.request.candidate_ids[c]
        for row, items in zip(rows, lists_RL.tolist(), strict=True)
        for c in items
        if c >= 0
    }
    return len(shown) / len(offered)


def diversity(encoder: Encoder, rows: Sequence[TrainingRow], lists_RL: np.ndarray) -> float:
    """How much two items of a list differ: mean over pairs, and over encoded item columns, of |difference| (numeric, in
    standard deviations) or inequality (categorical); mean over lists of two or more."""
    found = []
    for row, items in zip(rows, lists_RL, strict=True):
        chosen = items[items >= 0]
        if len(chosen) < 2:
            continue
        encoded = encoder.encode(row.request, row.user, row.items)
        numeric, categorical = encoded["item_num_CF"][chosen], encoded["item_cat_CF"][chosen]
        first, second = np.triu_indices(len(chosen), 1)
        apart = [np.abs(numeric[first] - numeric[second]), categorical[first] != categorical[second]]
        found.append(float(np.concatenate(apart, axis=1).mean()))
    return float(np.mean(found)) if found else 0.0


def _decoded(bundle: Bundle, encoded: dict[str, np.ndarray], length: int, rules: Rules | None) -> np.ndarray:
    try:
        return np.asarray(bundle.decode(encoded, length, rules).order[:length])
    except ConstraintError:
        return np.empty(0, np.int64)


def _valid(order: list[int], row: TrainingRow, length: int, rules: Rules | None) -> bool:
    from serving.validation import validate

    ids = row.request.candidate_ids
    try:
        validate([ids[c] for c in order], ids, min(length, len(ids)) if rules is None else rules.length, rules)
    except ConstraintError:
        return False
    return True
