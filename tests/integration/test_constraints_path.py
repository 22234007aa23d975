"""Standing constraints and a trust region from schema.yaml to the bundle's answers and the offline figures."""

from __future__ import annotations

import json
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from degre_prod.bundle import load_bundle
from degre_prod.config import EvaluatorConfig, GeneratorConfig, MiningConfig, ScalingConfig, Settings
from degre_prod.encoding.splits import split_rows
from degre_prod.worlds.simulate import simulate
from orchestration import stages
from orchestration.evaluate import evaluate
from orchestration.run import create_run

REGION = 7
SETTINGS = Settings(
    scaling=ScalingConfig(num_workers=0),
    evaluator=EvaluatorConfig(prefix_state="additive", width=8, epochs=1, min_steps=1, batch_size=64, togo_steps=2),
    mining=MiningConfig(requests=40, beam_width=2, keep=2, replan_width=2, trust_region=REGION),
    generator=GeneratorConfig(width=8, epochs=1, batch_size=16),
)


def with_shelves(dataset: Path) -> None:
    """Give every item one of three shelves, and every list a gap by shelf and at least one item of shelf c."""
    file = dataset / "item_features.parquet"
    table = pq.read_table(file)
    shelves = pa.array(["abc"[i % 3] for i in range(table.num_rows)])
    pq.write_table(table.append_column("shelf", shelves), file)
    schema = yaml.safe_load((dataset / "schema.yaml").read_text())
    schema["item"]["features"].append({"name": "shelf", "kind": "categorical"})
    schema["constraints"] = {
        "gap": {"by": "shelf", "slots": 2},
        "quotas": [{"by": "shelf", "value": "c", "min": 1, "max": 1}],
    }
    (dataset / "schema.yaml").write_text(yaml.safe_dump(schema))


def obeys(shelves: list[str]) -> bool:
    """The constraints, spelt out."""
    return shelves.count("c") == 1 and all(one != other for one, other in pairwise(shelves))


def test_constraints_hold_from_mining_to_the_answer(tmp_path: Path) -> None:
    simulate("mixed", "small", tmp_path / "data", train=120, validation=20, test=20)
    with_shelves(tmp_path / "data")
    run = create_run(tmp_path / "run", tmp_path / "data", SETTINGS)
    stages.build_training_rows(run)
    for stage in (stages.encode, stages.train_evaluator, stages.mine, stages.train_generator, stages.build_bundle):
        stage(run)
    record = json.loads((run.mined / "mining.json").read_text())
    assert record["trust_region"] == REGION
    assert record["mined"] + record["infeasible"] == 40
    bundle = load_bundle(run.bundle)
    assert bundle.trust_region == REGION
    L, feasible = bundle.schema.list_length, 0
    for row in split_rows(run.training_set, bundle.schema, "test"):
        answer = bundle.answer(row.request, row.user, row.items, L)
        place = tuple(list(row.request.candidate_ids).index(item) for item in answer)
        good = {
            order for order in permutations(range(REGION), L) if obeys([row.items.values["shelf"][i] for i in order])
        }
        assert not good or place in good  # where the candidates admit no such list, constraints yield
        assert len(set(answer)) == L
        feasible += bool(good)
    assert feasible >= 10
    document = evaluate(run)
    assert np.isfinite(document["measures"]["believed"]["beam"]["mean"])
