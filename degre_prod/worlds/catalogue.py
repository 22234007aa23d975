"""The users and items of a world, drawn from a seed. Features are float32, as the feature store keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from degre_prod.worlds.spec import WorldSpec

ITEMS: Final = 20_000
USERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Row i is the user or item with id i + 1.

    taste: float32 (users, 3) · style: float32 (items, 3), unit vectors · quality, hook (0 or 1), boredom, price:
    float32 (items,). Price has no effect.
    """

    taste: np.ndarray
    style: np.ndarray
    quality: np.ndarray
    hook: np.ndarray
    boredom: np.ndarray
    price: np.ndarray

    @property
    def user_ids(self) -> np.ndarray:
        """int64 (users,)."""
        return np.arange(1, len(self.taste) + 1, dtype=np.int64)

    @property
    def item_ids(self) -> np.ndarray:
        """int64 (items,)."""
        return np.arange(1, len(self.style) + 1, dtype=np.int64)


def draw_catalogue(spec: WorldSpec, seed: int) -> Catalogue:
    """The same catalogue for the same spec and seed, on every machine."""
    rng = np.random.default_rng([seed, 0])
    style = rng.standard_normal((ITEMS, 3))
    style /= np.linalg.norm(style, axis=1, keepdims=True)
    columns = {
        "taste": rng.standard_normal((USERS, 3)),
        "style": style,
        "quality": rng.standard_normal(ITEMS),
        "hook": rng.random(ITEMS) < spec.hook_share,
        "boredom": rng.random(ITEMS),
        "price": rng.standard_normal(ITEMS),
    }
    return Catalogue(**{name: column.astype(np.float32) for name, column in columns.items()})
