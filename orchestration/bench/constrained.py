"""Constrained requests for `degre bench decode`: a gap, a quota and a pin, each binding, on made-up columns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from degre_prod.bundle import Bundle
from degre_prod.constraints.settle import settle
from degre_prod.constraints.spec import Constraints, GapRule, QuotaRule, StandingConstraints
from degre_prod.encoding.encoder import Encoded

GROUPS, KINDS = 12, 3


def constrained_calls(bundle: Bundle, encoded: list[Encoded], length: int) -> dict[str, Callable[[int], object]]:
    """What the engine does for a constrained request after its features are read: rules from constraints, then decode.

    `rules`: no neighbours of one of 12 groups, 2 to 4 of one of 3 kinds, one pin. `exclude`: ten candidates, nothing else.
    """
    rng = np.random.default_rng(7)
    C = len(encoded[0]["prior_rank_C"])
    columns = [
        {
            "group": rng.choice([f"g{i}" for i in range(GROUPS)], C).tolist(),
            "kind": rng.choice([f"k{i}" for i in range(KINDS)], C).tolist(),
        }
        for _ in encoded
    ]
    most = max(2, length * 2 // 5)
    rules = Constraints(
        gap=GapRule(by="group", slots=2),
        quotas=(QuotaRule(by="kind", value="k0", min=min(2, length), max=most),),
        pinned={length // 3: C // 2},
    )
    exclude = Constraints(exclude=tuple(range(min(10, C - length))))

    def call(own: Constraints) -> Callable[[int], object]:
        def one(i: int) -> object:
            n = i % len(encoded)
            settled = settle(StandingConstraints(), own, range(C), columns[n], length)
            return bundle.decode(encoded[n], length, settled.rules)

        return one

    return {"rules": call(rules), "exclude": call(exclude)}
