"""A market whose taste drifts: clicks follow R(degrees) u, a rotation of the first two taste axes; everything logged stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from degre_prod.worlds.truth import World


def drifted(world: World, degrees: float) -> World:
    """The world with every user's taste turned; its features and upstream scores are those of `world`, for callers to use."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    taste = world.catalogue.taste.astype(np.float64)
    turned = taste.copy()
    turned[:, 0] = cos * taste[:, 0] - sin * taste[:, 1]
    turned[:, 1] = sin * taste[:, 0] + cos * taste[:, 1]
    return replace(world, catalogue=replace(world.catalogue, taste=turned))
