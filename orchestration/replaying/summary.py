"""Figures of a replay: how far the two lists agree, what the judge and the log say of their worth, where they differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from degre_prod.errors import DataError
from degre_prod.evaluation.metrics import Interval, mean_interval

if TYPE_CHECKING:
    import pyarrow as pa

    from degre_prod.evaluation.off_policy import Estimate

SEGMENT_VALUES = 12  # of a column, the commonest; the others are one segment
TOP_ITEMS = 15
MIN_MEAN_WEIGHT = 0.5  # of an estimate's weights; it is 1 where the log reaches what the bundle would show
OTHERS, MISSING = "(others)", "(missing)"


def summarise(answers: pa.Table, length: int, min_effective_samples: float) -> dict[str, Any]:
    """The document of a replay, JSON values; `length`: L. Requests for which the bundle has no list are counted apart."""
    rows = answers.to_pylist()
    made = [row for row in rows if row["answered"]]
    if not made:
        raise DataError("the bundle has no list for any of these requests")
    agreement = [_agreement(row["shown"], row["answered"]) for row in made]
    difference_R = np.array([_judged(row, "answered") - _judged(row, "shown") for row in made])
    return {
        "requests": len(rows),
        "without_list": len(rows) - len(made),
        "agreement": {
            "same_list": _mean([a["same"] for a in agreement]),
            "overlap": _mean([a["overlap"] for a in agreement]),
            "rank_correlation": _mean([a["tau"] for a in agreement]),
            "by_slot": [_mean([a["slots"][t] for a in agreement if t < len(a["slots"])]) for t in range(length)],
        },
        "judged": {
            "shown": _mean([_judged(row, "shown") for row in made]),
            "answered": _mean([_judged(row, "answered") for row in made]),
            "difference": _mean(difference_R),
        },
        "earned": _mean([_earned(row) for row in made]),
        "off_policy": off_policy(made, length, min_effective_samples),
        "segments": list(_segments(made, agreement, difference_R)),
        "items": _moved([row["shown"] for row in made], [row["answered"] for row in made]),
        "categories": _categories(made),
    }


def _agreement(shown: Sequence[Any], answered: Sequence[Any]) -> dict[str, Any]:
    """Slots with the same item, share of the shown items that the other list holds, Kendall's τ of the items of both."""
    place = {item: t for t, item in enumerate(answered)}
    ranks = [place[item] for item in shown if item in place]
    pairs = [(a < b) - (a > b) for i, a in enumerate(ranks) for b in ranks[i + 1 :]]
    return {
        "same": float(list(shown) == list(answered)),
        "overlap": len(ranks) / len(shown),
        "tau": sum(pairs) / len(pairs) if pairs else float("nan"),
        "slots": [float(t < len(answered) and answered[t] == item) for t, item in enumerate(shown)],
    }


def off_policy(rows: Sequence[dict[str, Any]], length: int, min_effective_samples: float) -> list[dict[str, Any]]:
    """Estimates of what the bundle's lists would have earned, from the requests that log propensities and lost nothing."""
    whole = [r for r in rows if _earned(r) == _earned(r) and len(r["answered"]) == len(r["shown"])]
    slots = [r for r in whole if r["propensity"] is not None and len(r["propensity"]) >= len(r["shown"])]
    lists = [r for r in whole if r["list_propensity"] is not None and r["propensity"] is None]
    found = [*_by_slot(slots, length), *_by_list(lists)]
    return [
        _told(name, estimate, count, min_effective_samples) for name, estimate, count in found if estimate is not None
    ]


def _by_slot(rows: Sequence[dict[str, Any]], length: int) -> Iterator[tuple[str, Estimate | None, int]]:
    from degre_prod.evaluation.off_policy import slot_dr, slot_ips, slot_snips

    if len(rows) < 2:
        return
    reward, target, logging = np.zeros((len(rows), length)), np.ones((len(rows), length)), np.ones((len(rows), length))
    togo = np.zeros((len(rows), length))
    for r, row in enumerate(rows):
        T = len(row["shown"])
        reward[r, :T], logging[r, :T] = row["earned"][:T], row["propensity"][:T]
        target[r, :T] = [a == b for a, b in zip(row["shown"], row["answered"], strict=True)]
        if row["judged_answered"] is not None:
            togo[r, :T] = np.cumsum(row["judged_answered"][::-1])[::-1]
    yield "IPS by slot", slot_ips(reward, target, logging), len(rows)
    try:
        yield "SNIPS by slot", slot_snips(reward, target, logging), len(rows)
    except DataError:  # nothing like it was ever shown as far as the last slot
        return
    if rows[0]["judged_answered"] is not None:
        # One list a request: of the logged item the model is only asked where it is the bundle's own.
        yield "DR by slot", slot_dr(reward, target, logging, togo, togo), len(rows)


def _by_list(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Estimate | None, int]]:
    from degre_prod.evaluation.off_policy import list_dr, list_ips, list_snips

    if len(rows) < 2:
        return
    reward = np.array([_earned(r) for r in rows])
    logging = np.array([r["list_propensity"] for r in rows], float)
    target = np.array([r["shown"] == r["answered"] for r in rows], float)
    yield "IPS of lists", list_ips(reward, target, logging), len(rows)
    try:
        yield "SNIPS of lists", list_snips(reward, target, logging), len(rows)
    except DataError:
        return
    if rows[0]["judged_answered"] is not None:
        model = np.array([_judged(r, "answered") for r in rows])
        yield "DR of lists", list_dr(reward, target, logging, model, model), len(rows)


def _told(name: str, estimate: Estimate, count: int, minimum: float) -> dict[str, Any]:
    assert estimate.weight_RT is not None
    mean_weight = float(estimate.weight_RT.mean(0).min())
    return {
        "name": name,
        "requests": count,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "effective_samples": estimate.effective_samples,
        "mean_weight": mean_weight,
        "estimable": bool(estimate.effective_samples >= minimum and mean_weight >= MIN_MEAN_WEIGHT),
    }


def _segments(
    rows: Sequence[dict[str, Any]], agreement: Sequence[dict[str, Any]], difference_R: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Each value of each column, in the order of the columns; values by how many requests they have, hours by the clock."""
    segments = [json.loads(row["segments"]) for row in rows]
    for column in dict.fromkeys(name for segment in segments for name in segment):
        values = [segment.get(column) or MISSING for segment in segments]
        counts = Counter(values)
        common = sorted(counts) if column == "hour" else [v for v, _ in counts.most_common(SEGMENT_VALUES)]
        codes = np.array([common.index(v) if v in common else len(common) for v in values])
        for code, value in enumerate([*common, OTHERS]):
            chosen: list[int] = np.flatnonzero(codes == code).tolist()
            if chosen:
                yield {
                    "column": column,
                    "value": value,
                    "requests": len(chosen),
                    "same_list": float(np.mean([agreement[r]["same"] for r in chosen])),
                    "overlap": float(np.mean([agreement[r]["overlap"] for r in chosen])),
                    "judged_shown": _mean([_judged(rows[r], "shown") for r in chosen]),
                    "judged_answered": _mean([_judged(rows[r], "answered") for r in chosen]),
                    "difference": _mean(difference_R[chosen]),
                }


def _moved(shown: Sequence[Sequence[Any]], answered: Sequence[Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    """The items or categories with the largest rise and the largest fall in how often they stand in a list."""
    before, after = (Counter(item for items in lists for item in items) for lists in (shown, answered))
    slots: dict[str, Counter[Any]] = {"shown": Counter(), "answered": Counter()}
    for name, lists in (("shown", shown), ("answered", answered)):
        for items in lists:
            slots[name].update({item: t + 1 for t, item in enumerate(items)})
    every = sorted({*before, *after}, key=lambda i: (before[i] - after[i], str(i)))
    rows = [
        {
            "name": item,
            "shown": before[item],
            "answered": after[item],
            "change": after[item] - before[item],
            "slot_shown": slots["shown"][item] / before[item] if before[item] else None,
            "slot_answered": slots["answered"][item] / after[item] if after[item] else None,
        }
        for item in every
    ]
    return {
        "promoted": [row for row in rows[:TOP_ITEMS] if row["change"] > 0],
        "demoted": [row for row in rows[::-1][:TOP_ITEMS] if row["change"] < 0],
    }


def _categories(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By column and value: how many slots of all lists show it."""
    out = []
    shown, answered = ([json.loads(row[f"{which}_categories"]) for row in rows] for which in ("shown", "answered"))
    for column in shown[0]:
        before, after = (Counter(v or MISSING for row in lists for v in row[column]) for lists in (shown, answered))
        totals = sum(before.values()), sum(after.values())
        for value in sorted({*before, *after}, key=lambda v: (-abs(after[v] - before[v]), v))[:TOP_ITEMS]:
            shares = before[value] / totals[0], after[value] / totals[1]
            out.append({"column": column, "value": value, "shown_share": shares[0], "answered_share": shares[1]})
    return out


def _judged(row: dict[str, Any], which: str) -> float:
    values = row[f"judged_{which}"]
    return float("nan") if values is None else float(sum(values))


def _earned(row: dict[str, Any]) -> float:
    """Utility of the shown list; NaN where tracking was lost."""
    return float("nan") if any(v is None for v in row["earned"]) else float(sum(row["earned"]))


def _mean(values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """Mean with its 95 % interval; None where there is none."""
    found: Interval = mean_interval(np.asarray(values, float))
    return {name: None if value != value else value for name, value in asdict(found).items()}
