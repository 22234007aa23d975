"""Every method by name. `degre` itself is not here: it is the project's own path."""

from __future__ import annotations

from typing import Any, Final

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.click_to_top import TRIALS as CLICK_TO_TOP
from degre_prod.baselines.click_to_top import click_to_top
from degre_prod.baselines.dpo import TRIALS as GREF_DPO
from degre_prod.baselines.dpo import dpo
from degre_prod.baselines.goalrank import TRIALS as GOALRANK
from degre_prod.baselines.goalrank import goalrank
from degre_prod.baselines.grpo import TRIALS as GRPO
from degre_prod.baselines.grpo import grpo
from degre_prod.baselines.lambdarank import TRIALS as LAMBDARANK
from degre_prod.baselines.lambdarank import lambdarank
from degre_prod.baselines.material import Material, Method, Ranker
from degre_prod.baselines.mmr import TRIALS as MMR
from degre_prod.baselines.mmr import mmr
from degre_prod.baselines.nar import TRIALS as NAR4REC
from degre_prod.baselines.nar import nar
from degre_prod.baselines.pointwise import TRIALS as POINTWISE
from degre_prod.baselines.pointwise import pointwise
from degre_prod.baselines.prm import TRIALS as PRM
from degre_prod.baselines.prm import prm
from degre_prod.baselines.teachers import beam_evaluator, greedy_evaluator
from degre_prod.evaluation.methods import input_order


def upstream(material: Material, _: Calls) -> Ranker:
    """The order in which the candidates came."""
    return lambda encoded: input_order(encoded, material.layout.list_length)


TEACHERS: Final[dict[str, Method]] = {"greedy_evaluator": greedy_evaluator, "beam_evaluator": beam_evaluator}
GRADED: Final[dict[str, Method]] = {"nar4rec": nar, "gref_dpo": dpo, "goalrank": goalrank, "grpo": grpo}
METHODS: Final[dict[str, Method]] = {
    "input_order": upstream,
    "pointwise": pointwise,
    "mmr": mmr,
    "lambdarank": lambdarank,
    "click_to_top": click_to_top,
    "prm": prm,
    **GRADED,
    **TEACHERS,
}

# What may be tuned, by judging the lists of validation requests: as many configurations for each method, the first one its
# default. `METHODS[name](material, calls, config)` runs one. What is not here has nothing to tune.
TRIALS: Final[dict[str, tuple[Any, ...]]] = {
    "pointwise": POINTWISE,
    "mmr": MMR,
    "lambdarank": LAMBDARANK,
    "click_to_top": CLICK_TO_TOP,
    "prm": PRM,
    "nar4rec": NAR4REC,
    "gref_dpo": GREF_DPO,
    "goalrank": GOALRANK,
    "grpo": GRPO,
}
