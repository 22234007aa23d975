"""What each gate looks at, computed from folders. The bounds, and what a figure beyond one means, are in `gates`.

data_check       the new log: how many rows are usable, how many broke which rule
drift_check      features and feedback of the newest rows against those of training
evaluator_check  a new evaluator, and the champion's, on the newest held-out feedback
value_check      a candidate bundle against the champion: the judge, and off-policy estimates      (bundle_checks)
bundle_check     what a candidate's lists and decoding are like beside the champion's              (bundle_checks)
train_judge_step the judge that `value_check` asks                                                  (judge)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.retrain.bundle_checks import bundle_check, value_check
from orchestration.retrain.gates import FeedbackRate, Gate, data_gate, drift_gate, evaluator_gate, feedback_gate
from orchestration.retrain.judge import train_judge_step
from orchestration.retrain.period import Period, split_period

if TYPE_CHECKING:
    from degre_prod.config import Settings
    from degre_prod.encoding.store import EncodedSet
    from degre_prod.rows import TrainingRow
    from degre_prod.schema import DataSchema

__all__ = [
    "Gate",
    "Period",
    "bundle_check",
    "data_check",
    "drift_check",
    "encode_period",
    "evaluator_check",
    "split_period",
    "train_judge_step",
    "value_check",
]


ROWS = 10_000  # of a period, evenly spread: what drift is measured on
TELLING = 30  # slots with and without feedback below which an AUC says nothing


def data_check(
    log: Path | Sequence[Path],
    schema: DataSchema,
    settings: Settings,
    *,
    now_us: int,
    earlier_requests: int = 0,
    set_aside: int = 0,
) -> Gate:
    """Gate `data`. `log`: the new impression log, as a parquet file, a folder of them, or files (collected ones, too).

    A row is usable when it keeps every rule of the contract and nothing says that its list was never shown
    (`confirmed`). `earlier_requests`: usable ones of earlier days that will be trained on as well; they count for the
    volume, not for the rejected share. `set_aside`: entries that the collector could not make rows of; they count as
    rejected. `now_us`: the present, µs since 1970 UTC. A file that cannot be read, or lacks a
    column, fails the gate as well.
    """
    import pyarrow.compute as pc

    from degre_prod.errors import DataError
    from degre_prod.validation import check_log

    try:
        checked = check_log(log, schema, now_us=now_us)
    except DataError as error:
        return Gate("data", False, str(error))
    usable = pc.sum(pc.fill_null(checked.accepted["confirmed"], True)).as_py() or 0
    share = settings.data.max_rejected_share
    rejected = checked.report.rejected_by_rule | ({"set_aside_by_collector": set_aside} if set_aside else {})
    return data_gate(usable, rejected, settings.gates, share, earlier_requests)


def drift_check(before: Period, now: Period, settings: Settings) -> tuple[Gate, Gate]:
    """Gates `drift` and `feedback`: raw feature columns and feedback a list of `before` (training) against `now` (newest).

    Both periods may be of one training set or of two; features are compared by name. Up to 10,000 rows of each, evenly
    spread. Raises DataError when a period has no row.
    """
    from degre_prod.errors import DataError
    from degre_prod.evaluation.drift import drift_report, feature_columns

    old, new = before.rows(ROWS), now.rows(ROWS)
    for name, period, rows in (("before", before, old), ("now", now, new)):
        if not rows:
            raise DataError(f"no row in the period `{name}`", file=str(period.training_set))
    rates, rates_now = (_feedback_rates(rows, now.schema) for rows in (old, new))
    drifts = drift_report(feature_columns(old, before.schema), feature_columns(new, now.schema))
    return drift_gate(drifts, settings.gates), feedback_gate(rates, rates_now, settings.gates)


def evaluator_check(
    evaluator: Path,
    champion_evaluator: Path | None,
    heldout_encoded: Path,
    settings: Settings,
    *,
    champion_encoded: Path | None = None,
) -> Gate:
    """Gate `evaluator`: calibration and AUC of step values on held-out feedback, and the champion's AUC on the same.

    `evaluator`, `champion_evaluator`: evaluator folders of a run. `heldout_encoded`: an encoded split (the newest time,
    which neither was trained on), encoded by the new evaluator's encoder; `champion_encoded`: the same requests encoded by
    the champion's (`encode_period` writes one), where that is another encoder. With several objectives the worst
    counts; one with fewer than 30 slots with, or without, feedback is not judged. Raises MismatchError when an evaluator
    does not fit its encoding.
    """
    import torch

    from degre_prod.encoding.store import load_encoded

    torch.set_num_threads(1)
    found = _held_out_figures(evaluator, load_encoded(heldout_encoded))
    qualities = [q for q in found.qualities if q is not None]
    champion = None
    if champion_evaluator is not None:
        told = _held_out_figures(champion_evaluator, load_encoded(champion_encoded or heldout_encoded))
        champion = min((q for q in told.qualities if q is not None), default=None)
    return evaluator_gate(found.calibration_error, min(qualities, default=None), champion, settings.gates)


def encode_period(period: Period, encoder: Path, out: Path) -> Path:
    """Encode the rows of a period through an encoder.json, as the splits of a run are, into the folder `out`; returns it."""
    from degre_prod.encoding.encoder import load_encoder
    from degre_prod.encoding.splits import encode_rows

    encode_rows(load_encoder(encoder), period.rows(), out)
    return out


@dataclass(frozen=True)
class _HeldOutFigures:
    """Of the objective that is worst calibrated; AUC by objective, None where feedback is too rare to tell."""

    calibration_error: float
    qualities: tuple[float | None, ...]


def _held_out_figures(evaluator: Path, encoded: EncodedSet) -> _HeldOutFigures:
    from degre_prod.errors import MismatchError
    from degre_prod.evaluation.isotonic import logged_increments
    from degre_prod.evaluation.ranking import area_under_curve, excess_calibration_error
    from degre_prod.training.modules import load_evaluator

    model = load_evaluator(evaluator)
    widths = {group: encoded.arrays[f"{group}_num"].shape[-1] for group in model.spec.layout.num}
    if widths != model.spec.layout.num:
        raise MismatchError(
            f"{evaluator} reads arrays of widths {model.spec.layout.num}, these requests have {widths}: encode them through "
            "the encoder it was trained with"
        )
    errors: list[float] = []
    qualities: list[float | None] = []
    for o in range(model.spec.layout.objectives):
        expected, outcome, known = logged_increments(model, encoded, o)
        m, y = expected[known], outcome[known] > 0
        errors.append(excess_calibration_error(m, y))
        telling = min(int(y.sum()), int((~y).sum())) >= TELLING
        qualities.append(area_under_curve(m, y) if telling else None)
    return _HeldOutFigures(max(errors), tuple(qualities))


def _feedback_rates(rows: Sequence[TrainingRow], schema: DataSchema) -> dict[str, FeedbackRate]:
    """By objective; slots whose tracking was lost are left out."""
    import numpy as np

    earned_RO = np.array(
        [np.where(True if r.seen_T is None else r.seen_T, r.feedback_OT, 0.0).sum(1, dtype=float) for r in rows]
    )
    return {
        o.name: FeedbackRate(float(earned_RO[:, i].mean()), float(earned_RO[:, i].var()), len(rows))
        for i, o in enumerate(schema.objectives)
    }
