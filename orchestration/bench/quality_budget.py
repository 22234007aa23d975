"""How `degre` spends a share of the evaluator calls that mining with its defaults takes: less a request, so more requests.

Chosen by what the evaluator believes of the generator's lists, on seeds 100 to 102 of large `hooks` and `mixed`, which are
in no table.
"""

from __future__ import annotations

import math
from typing import Final

from degre_prod.config import GeneratorConfig, MiningConfig

CHEAPER: Final = {"beam_width": 1, "keep": 1, "shortlist": 12}


def cheaper(mining: MiningConfig) -> MiningConfig:
    """The mining whose requests cost less: where a local search follows, it starts from beams of width 1, its later sweeps
    try twelve items a slot, and its list alone is kept."""
    return mining.model_copy(update=CHEAPER) if mining.sweeps else mining


def shortened(learning: GeneratorConfig, mined_share: float) -> GeneratorConfig:
    """The learning from `mined_share` of the requests: optimiser steps by its square root, since few lists are soon learnt
    by heart."""
    return learning.model_copy(update={"epochs": max(1, round(learning.epochs / math.sqrt(mined_share)))})
