"""What an ensemble's pessimism is worth on logs that show hardly more than one order (METHOD §2, §6).

    .venv/bin/python bench/pessimism.py --tau 0.1 --out runs/pessimism

Simulates a small world logged at temperature τ, trains an ensemble, and searches lists for the test requests with beams of
8: by its first member alone, by the mean of all, and by mean − κ·std. For each: the lists' true value and what is believed
of them, in shares of the optimum; optimism is the difference. Belief is the mean of the members that were asked, κ = 0; the
pessimistic score stands beside it. Each step is kept in the output folder; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from degre_prod.artefact import digest, finished, made_from, publish, workplace
from degre_prod.config import EvaluatorConfig
from degre_prod.encoding.splits import encode_splits
from degre_prod.encoding.store import load_encoded
from degre_prod.evaluation.enumeration import all_values
from degre_prod.evaluation.methods import beam_lists, believed_utility
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.schema import load_schema
from degre_prod.training.evaluator import train_evaluator
from degre_prod.training.modules import load_evaluator
from degre_prod.worlds.simulate import simulate
from degre_prod.worlds.truth import load_world
from orchestration.bench.direct_join import join_by_id

BEAM = 8


@dataclass(frozen=True)
class Searched:
    """Means over the test requests, shares of the optimum."""

    true: float
    believed: float
    score: float
    optimism: float


def run(
    world: str, tau: float, kappa: float, settings: EvaluatorConfig, logs: int, test: int, seed: int, out: Path
) -> None:
    """All of it, and the document on stdout."""
    torch.set_num_threads(1)
    data, encoded, trained = out / "data", out / "encoded", out / "evaluator"
    simulate(world, "small", data, seed=seed, train=logs, test=test, tau=tau)
    key = digest("pessimism", made_from(data))
    if not finished(encoded, key):
        place = workplace(encoded, key)
        (place / "rows").mkdir(exist_ok=True)
        join_by_id(data, place / "rows")
        encode_splits(place / "rows", load_schema(data), place)
        publish(encoded, key)
    key = digest("evaluator", key, settings.model_dump())
    if not finished(trained, key):
        place = workplace(trained, key)
        train_evaluator({"encoded": str(encoded), "folder": str(place), "evaluator": settings.model_dump()})
        publish(trained, key)
    mean, wary = load_evaluator(trained), load_evaluator(trained, pessimism=kappa)
    ways = {"first member": (first_member(mean),) * 2, "mean": (mean, mean), f"mean - {kappa:g} std": (wary, mean)}
    document = {"world": world, "tau": tau, "seed": seed, "logs": logs, "test": test, "members": settings.members}
    found = {name: asdict(searched(by, believing, out, test)) for name, (by, believing) in ways.items()}
    print(json.dumps(document | {"prefix_state": mean.spec.prefix_state, "searched": found}))


def first_member(model: LookaheadEvaluator) -> LookaheadEvaluator:
    """The evaluator that training with one member would have given."""
    one = LookaheadEvaluator(replace(model.spec, members=1))
    next(one.each()).load_state_dict(next(model.each()).state_dict())
    return one.eval()


def searched(by: LookaheadEvaluator, believing: LookaheadEvaluator, out: Path, test: int) -> Searched:
    """Search by one evaluator, ask the other what it believes of the lists, and look at the truth."""
    encoded, world = load_encoded(out / "encoded" / "test"), load_world(out / "data")
    log = pq.read_table(out / "data" / "impressions.parquet", columns=["user_id", "candidate_ids"])
    log = log.slice(log.num_rows - test)
    users, candidates = log["user_id"].to_numpy(), np.array(log["candidate_ids"].to_pylist())
    best = all_values(world, users, candidates).max(1)
    found = beam_lists(by, encoded, world.spec.list_length, BEAM, lambda _: None)
    unit = believing.spec.mean_utility / best  # from Ū to shares of the optimum: a world has one objective of weight 1
    true = float((world.true_values(users, candidates, found.lists[:, None])[:, 0] / best).mean())
    believed = float((believed_utility(believing, encoded, found.lists) * unit).mean())
    return Searched(true, believed, float((found.believed * unit).mean()), believed - true)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="mixed")
    parser.add_argument("--tau", type=float, default=0.1)
    parser.add_argument("--kappa", type=float, default=1.0)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--logs", type=int, default=40_000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prefix-state", default="auto", choices=("auto", "additive", "attention"))
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    chosen = EvaluatorConfig(members=a.members, prefix_state=a.prefix_state, seed=a.seed)
    run(a.world, a.tau, a.kappa, chosen, a.logs, a.test, a.seed, a.out)
