"""The judge of a retraining run: bidirectional, of seeds of its own, on exploration traffic where there is enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.retrain.period import logged_chances

if TYPE_CHECKING:
    from degre_prod.config import Settings

_FORMAT = 1
SEEDS = 1_000_003  # above every seed of an evaluator's members: a judge of the same seed would draw the same batches
ENOUGH = 2000  # explored requests from which on the judge learns from them alone


def train_judge_step(encoded: Path, training_set: Path, out: Path, settings: Settings) -> Path:
    """Train the judge into the folder `out` on the worker group, and return it; does nothing when it is there already,
    resumes when interrupted.

    `encoded`: a run's encoded folder (train/, validation/, encoder.json). `training_set`: the rows it was made from, which
    say what was logged with propensities; from 2,000 such requests on the judge learns from them alone, else from all.
    Leaves judge.safetensors/.json, curves.json, traffic.json (how many requests, whether explored ones alone) and a copy
    of encoder.json, through which the judge reads requests. Ray, where workers are configured, is the caller's
    (`ray_cluster`).
    """
    import shutil

    from degre_prod.artefact import digest, finished, made_from, publish, workplace, write_json
    from degre_prod.encoding.store import load_encoded
    from degre_prod.training.judge import train_judge
    from degre_prod.training.launch import run_group

    own = settings.judge.model_copy(update={"seed": settings.judge.seed + SEEDS}).model_dump()
    key = digest("retrain judge", _FORMAT, made_from(encoded), made_from(training_set), own)
    if finished(out, key):
        return out
    place = workplace(out, key).absolute()
    train = load_encoded(encoded / "train")
    known = logged_chances(training_set)
    explored = [r for r, request_id in enumerate(train.request_ids) if request_id in known]
    alone = len(explored) >= ENOUGH
    config = {
        "encoded": str(encoded.absolute()),
        "folder": str(place),
        "judge": own,
        "requests": explored if alone else "all",
    }
    run_group(train_judge, config, folder=place, scaling=settings.scaling, label="judge")
    write_json(place / "traffic.json", {"requests": len(explored) if alone else len(train), "explored_alone": alone})
    shutil.copyfile(encoded / "encoder.json", place / "encoder.json")
    publish(out, key)
    return out
