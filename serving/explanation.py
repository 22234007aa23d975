"""Why an item is where it is: its logit, how close the runner-up came, and the feature values that were read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from degre_prod.requests import FeatureColumns, Id
from serving.protocol import RankedItem

if TYPE_CHECKING:
    from serving.engine import Decoded


def explained_items(decoded: Decoded, candidate_ids: Sequence[Id], items: FeatureColumns) -> list[RankedItem]:
    """One a slot; what is not known (no other item was left, an old bundle) is None."""
    order, margins = decoded.order.tolist(), decoded.margins.tolist()
    logits = [None] * len(order) if decoded.logits is None else decoded.logits.tolist()
    rivals = [-1] * len(order) if decoded.runner_up is None else decoded.runner_up.tolist()
    return [
        RankedItem(
            id=candidate_ids[candidate],
            position=t,
            logit=logits[t],
            margin=margins[t] if math.isfinite(margins[t]) else None,
            runner_up=candidate_ids[rivals[t]] if rivals[t] >= 0 else None,
            features=feature_values(items, candidate),
        )
        for t, candidate in enumerate(order)
    ]


def feature_values(columns: FeatureColumns, row: int) -> dict[str, Any]:
    """One entity's values in JSON's own types; None is missing."""
    return {name: _plain(column[row]) for name, column in columns.values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        values = value.tolist()
        return None if any(math.isnan(v) for v in values) else values
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value
