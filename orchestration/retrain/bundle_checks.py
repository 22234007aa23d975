"""A candidate bundle beside the champion: what its lists are worth, whether they are valid, how long it takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.retrain.gates import Gate, ListFigures, bundle_gate, value_gate
from orchestration.retrain.made_lists import Made, coverage, diversity, make_lists, upstream_lists
from orchestration.retrain.off_policy import paired_estimates
from orchestration.retrain.period import Period, logged_chances

if TYPE_CHECKING:
    import numpy as np

    from degre_prod.config import Settings
    from degre_prod.rows import TrainingRow


def value_check(candidate: Path, champion: Path | None, judge: Path, heldout: Period, settings: Settings) -> Gate:
    """Gate `value`: is the candidate's list, request by request, worth as much as the champion's?

    `candidate`, `champion`: bundle folders; each reads the requests through its own encoder. Without a champion the
    candidate is compared with the upstream order. `judge`: what `train_judge_step` returned. `heldout`: requests that
    neither bundle nor the judge was trained on, e.g. `split_period(run.training_set, schema, "test")`. Off-policy estimates
    (IPS, SNIPS, DR) rest on those of them that the champion answered with exploration and logged propensities. Raises
    DataError when the period has no row.
    """
    import numpy as np

    from degre_prod.bundle import load_bundle
    from degre_prod.evaluation.metrics import mean_interval
    from degre_prod.evaluation.off_policy import Estimate
    from degre_prod.training.modules import load_judge

    rows = _rows(heldout)
    ours, theirs = load_bundle(candidate), None if champion is None else load_bundle(champion)
    made = make_lists([ours] if theirs is None else [ours, theirs], rows, ours.manifest.list_length)
    lists_RL = made[0].lists_RL
    other_RL = upstream_lists(rows, ours.manifest.list_length) if theirs is None else made[1].lists_RL
    judged_RL, other_judged_RL = _judged(judge, rows, [lists_RL, other_RL])
    gained = mean_interval(judged_RL.sum(1) - other_judged_RL.sum(1))
    judged = Estimate(gained.mean, gained.low, gained.high, float(gained.count))
    estimates = {}
    if theirs is not None:
        estimates = paired_estimates(
            rows,
            logged_chances(heldout.training_set),
            theirs.manifest_sha256,
            (lists_RL, judged_RL),
            (other_RL, other_judged_RL),
            np.array(load_judge(judge).spec.weights_OL),
        )
    against = "the upstream order" if theirs is None else "the champion"
    return value_gate(judged, float(other_judged_RL.sum(1).mean()), estimates, settings.gates, champion=against)


def bundle_check(candidate: Path, champion: Path | None, requests: Period, settings: Settings) -> Gate:
    """Gate `bundle`: every list valid under the data set's constraints, median decoding time of both (measured in turns
    on the same requests), share of the offered items that any list shows, and how different the items of a list are.

    Raises DataError when the period has no row.
    """
    from degre_prod.bundle import load_bundle

    rows = _rows(requests)
    bundles = [load_bundle(folder) for folder in (candidate, champion) if folder is not None]
    made = make_lists(bundles, rows, bundles[0].manifest.list_length)
    encoder = bundles[0].encoder

    def figures(of: Made) -> ListFigures:
        return ListFigures(of.median_ms, coverage(rows, of.lists_RL), diversity(encoder, rows, of.lists_RL))

    return bundle_gate(made[0].invalid, figures(made[0]), figures(made[1]) if len(made) > 1 else None, settings.gates)


def _rows(period: Period) -> list[TrainingRow]:
    from degre_prod.errors import DataError

    rows = period.rows()
    if not rows:
        raise DataError("no request in the period to compare bundles on", file=str(period.training_set))
    return rows


def _judged(judge: Path, rows: list[TrainingRow], lists: list[np.ndarray]) -> list[np.ndarray]:
    """What the judge expects of each slot of each list, (R, L) in units of feedback."""
    from tempfile import TemporaryDirectory

    import torch

    from degre_prod.encoding.encoder import load_encoder
    from degre_prod.encoding.splits import encode_rows
    from degre_prod.encoding.store import load_encoded
    from degre_prod.training.judge import judged_slots
    from degre_prod.training.modules import load_judge

    torch.set_num_threads(1)
    model = load_judge(judge)
    with TemporaryDirectory() as folder:
        encode_rows(load_encoder(judge / "encoder.json"), rows, Path(folder))
        encoded = load_encoded(Path(folder))
        return [judged_slots(model, encoded, lists_RL) for lists_RL in lists]
