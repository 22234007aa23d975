"""Offline evaluation of a run on its test split: every method's lists, the truth where the world has one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degre_prod.artefact import digest, file_digest, finished, made_from, publish, workplace, write_json
from degre_prod.errors import DataError
from orchestration.run import Run

if TYPE_CHECKING:
    import numpy as np

    from degre_prod.rows import TrainingRow
    from degre_prod.schema import DataSchema

_FORMAT = 1
Progress = Callable[[int], object]


def evaluate(run: Run) -> dict[str, Any]:
    """Write and return evaluation.json: per method the mean and 95 % interval of every measure over test requests.

    Measures: `true_value` as a share of the reference (worlds only), `mrr` of the first logged positive (lists without one
    left out, their share given), `believed` by the evaluator, in units of mean logged utility.
    """
    if not (run.bundle / "manifest.json").is_file():
        raise DataError("no bundle here: run `degre train generator` first", file=str(run.bundle))
    width = run.settings.mining.beam_width
    bundle = file_digest(run.bundle / "manifest.json")
    key = digest("evaluation", _FORMAT, made_from(run.evaluator), bundle, width)
    if not finished(run.evaluation, key):
        place = workplace(run.evaluation, key)
        write_json(place / "evaluation.json", _evaluate(run))
        publish(run.evaluation, key)
    return dict(json.loads((run.evaluation / "evaluation.json").read_text()))


def _evaluate(run: Run) -> dict[str, Any]:
    import torch

    from degre_prod.bundle import load_bundle
    from degre_prod.bundle.load import standing_rules
    from degre_prod.encoding.splits import split_rows
    from degre_prod.encoding.store import load_encoded
    from degre_prod.evaluation import methods
    from degre_prod.evaluation.metrics import calibration, first_positive, mean_interval, reciprocal_ranks
    from degre_prod.mining.record import mining_rules
    from degre_prod.training.modules import load_evaluator, load_pointwise

    torch.set_num_threads(1)
    bundle = load_bundle(run.bundle)
    schema, layout = bundle.schema, bundle.encoder.layout()
    L = schema.list_length
    test, validation = load_encoded(run.encoded / "test"), load_encoded(run.encoded / "validation")
    evaluator = load_evaluator(run.evaluator)
    pointwise = load_pointwise(run.evaluator, layout, evaluator.spec.width, schema.logged_length)
    rows = list(split_rows(run.training_set, schema, "test"))
    lists: dict[str, np.ndarray] = {"input_order": methods.input_order(test, L)}
    with _bar("evaluate", 3 * len(test)) as progress:
        lists["pointwise"] = methods.pointwise_sort(pointwise, test, L, [o.weight for o in schema.objectives], progress)
        if schema.recent_event_types:
            lists["last_interacted_first"] = methods.last_interacted_first(
                [r.request.candidate_ids for r in rows], [r.request.recent_events for r in rows], L
            )
        rules = [standing_rules(schema, r.request, r.items, L, bundle.trust_region) for r in rows]
        lists["generator"] = methods.generator_lists(bundle, test, L, progress, rules)
        lists["beam"] = methods.beam_lists(
            evaluator,
            test,
            L,
            run.settings.mining.beam_width,
            progress,
            lambda requests: mining_rules(bundle.encoder.spec, test, requests, run.settings.mining),
        ).lists
    believed = {name: methods.believed_utility(evaluator, test, value) for name, value in lists.items()}
    positive = first_positive(test)
    measures: dict[str, dict[str, Any]] = {
        "mrr": {name: asdict(mean_interval(reciprocal_ranks(value, positive))) for name, value in lists.items()},
        "believed": {name: asdict(mean_interval(value)) for name, value in believed.items()},
    }
    document: dict[str, Any] = {
        "requests": len(test),
        "without_positive": float((positive < 0).mean()),
        "mean_utility": evaluator.spec.mean_utility,
        "measures": measures,
        "calibration": [asdict(b) for b in calibration(evaluator, validation)],
    }
    if (run.dataset / "truth").is_dir():
        document |= _against_truth(run.dataset, schema, rows, lists, believed, evaluator.spec.mean_utility)
        measures["true_value"] = document.pop("true_value")
    return document


def _against_truth(
    dataset: Path,
    schema: DataSchema,
    rows: list[TrainingRow],
    lists: dict[str, np.ndarray],
    believed: dict[str, np.ndarray],
    mean_utility: float,
) -> dict[str, Any]:
    """True values over the reference, their intervals, and belief beside truth (both in expected clicks)."""
    import numpy as np

    from degre_prod.evaluation.metrics import mean_interval
    from degre_prod.worlds.reference import reference_values
    from degre_prod.worlds.truth import load_world

    world = load_world(dataset)
    users = np.array([r.request.user_id for r in rows])
    candidates = np.array([r.request.candidate_ids for r in rows])
    with _bar("reference lists", len(rows)) as progress:
        reference, _ = reference_values(world, users, candidates, progress=progress)
    names = list(lists)
    truth_RM = world.true_values(users, candidates, np.stack([lists[n] for n in names], axis=1))
    exact = schema.max_candidates <= 8
    return {
        "world": f"{world.spec.world}-{world.spec.size}",
        "reference": "optimum" if exact else "best of wide true-value beams, hook-first starts and local search",
        "reference_clicks": float(reference.mean()),
        "true_value": {n: asdict(mean_interval(truth_RM[:, m] / reference)) for m, n in enumerate(names)},
        "optimism": {
            n: {"believed": float(np.nanmean(believed[n]) * mean_utility), "true": float(truth_RM[:, m].mean())}
            for m, n in enumerate(names)
        },
    }


@contextmanager
def _bar(label: str, total: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
