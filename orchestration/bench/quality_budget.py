"""How `degre` spends a share of the evaluator calls that mining with its defaults takes: narrower beams, so more requests.

Chosen by what the evaluator believes of the generator's lists, on seeds 100 to 102 of large `hooks` and `mixed`, which are
in no table.
"""

from __future__ import annotations

import math
from typing import Final

from degre_prod.config import GeneratorConfig, MiningConfig

BEAM_WIDTH: Final = 1


def narrowed(mining: MiningConfig) -> MiningConfig:
    """The mining whose requests cost less: where a local search follows, it starts from beams of BEAM_WIDTH."""
    return mining.model_copy(update={"beam_width": BEAM_WIDTH}) if mining.sweeps else mining


def shortened(learning: GeneratorConfig, mined_share: float) -> GeneratorConfig:
    """The learning from `mined_share` of the requests: optimiser steps by its square root, since few lists are soon learnt
    by heart."""
    return learning.model_copy(update={"epochs": max(1, round(learning.epochs / math.sqrt(mined_share)))})
