"""Bundles that play a part in the rollout's drills: better or worse lists than the champion's, slow, or broken.

Each is a real bundle, decoded for real; then its list is replaced by a stretch of the candidates in upstream order, which
says how good it is. The part is the bundle's name. Only benchmarks and tests build engines with it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from degre_prod.config import Settings
from serving.replica import build_engine

if TYPE_CHECKING:
    from degre_prod.bundle import Bundle, Decoded
    from degre_prod.constraints.rules import Rules
    from degre_prod.encoding.encoder import Encoded
    from serving.engine import Engine

# The rank that a part's lists begin with, in lists of 5 of 20 candidates; whoever plays no part is the champion.
FIRST = {"better": 0, "worse": 15}
CHAMPION_FIRST = 5
SLOW_S = 0.08


class ActingBundle:
    """A bundle whose `decode` plays the part that its name begins with (`better-1`)."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest_sha256, self.schema, self.encoder = bundle.manifest_sha256, bundle.schema, bundle.encoder
        self.follows_rules, self.trust_region = bundle.follows_rules, bundle.trust_region
        self._bundle, self._part = bundle, bundle.manifest.name.partition("-")[0]

    def decode(self, encoded: Encoded, length: int, rules: Rules | None = None) -> Decoded:
        """See Bundle.decode."""
        if self._part == "broken":
            raise RuntimeError("this bundle is broken")
        if self._part == "slow":
            time.sleep(SLOW_S)
        decoded = self._bundle.decode(encoded, length, rules)
        first = FIRST.get(self._part, CHAMPION_FIRST)
        return replace(decoded, order=np.arange(first, first + length))


def acting_engine(bundle: Bundle, settings: Settings) -> Engine:
    """`build_engine` around a bundle that plays a part."""
    return build_engine(ActingBundle(bundle), settings)
