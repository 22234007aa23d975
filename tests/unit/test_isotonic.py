"""Isotonic calibration, and where an evaluator errs in a world whose truth is known."""

from __future__ import annotations

from pathlib import Path

import crafted
import numpy as np
import pyarrow.parquet as pq
import pytest
from crafted import N

from degre_prod.encoding.encoder import load_encoder
from degre_prod.encoding.splits import encode_splits
from degre_prod.encoding.store import EncodedSet, load_encoded
from degre_prod.errors import DataError
from degre_prod.evaluation.diagnostics import EDITED, LISTS, break_down, diagnose, edited_lists
from degre_prod.evaluation.isotonic import Isotonic, SlotCalibration, fit_isotonic, fit_slot_calibration
from degre_prod.schema import load_schema
from degre_prod.training.data import logged_lists
from degre_prod.worlds.simulate import simulate
from degre_prod.worlds.truth import load_world
from orchestration.bench.direct_join import join_by_id


def test_neighbours_that_fall_are_pooled() -> None:
    fitted = fit_isotonic(np.array([0.4, 0.1, 0.3, 0.2]), np.array([1.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(fitted(np.array([0.1, 0.2, 0.25, 0.3, 0.4])), [0, 0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(fitted(np.array([[-1.0], [0.35], [9.0]])), [[0], [0.75], [1]])


def test_equal_predictions_are_one() -> None:
    fitted = fit_isotonic(np.array([0.5, 0.5, 0.5, 0.7]), np.array([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(fitted(np.array([0.5, 0.7])), [0.25, 0.25])  # three thirds and a zero, pooled


def test_no_other_rising_map_fits_better_and_the_mean_is_kept() -> None:
    rng = np.random.default_rng(0)
    predicted = np.round(rng.random(400), 2)
    outcome = (rng.random(400) < predicted**2).astype(float)
    fitted = fit_isotonic(predicted, outcome)
    calibrated = fitted(predicted)
    assert (np.diff(calibrated[np.argsort(predicted)]) >= 0).all()
    assert calibrated.mean() == pytest.approx(outcome.mean())
    least = ((calibrated - outcome) ** 2).sum()
    for other in (predicted**2, predicted, np.full(400, outcome.mean()), calibrated + 0.01, 0.9 * calibrated):
        assert ((other - outcome) ** 2).sum() > least
    assert np.abs(fitted(np.array([0.3, 0.5, 0.8])) - np.array([0.09, 0.25, 0.64])).max() < 0.12


def test_every_slot_has_a_map_of_its_own() -> None:
    both = SlotCalibration((Isotonic((0.0, 1.0), (0.0, 0.5)), Isotonic((0.0, 1.0), (0.5, 1.0))))
    np.testing.assert_allclose(both(np.full((3, 2, 2), 0.4)), np.tile([0.2, 0.7], (3, 2, 1)))


def test_calibration_reads_known_feedback_alone(tmp_path: Path) -> None:
    world = crafted.crafted(tmp_path, counts=(N,) * 60)
    model = crafted.evaluator(world.encoder)
    arrays = {name: np.array(value) for name, value in world.encoded.arrays.items()}
    before = fit_slot_calibration(model, EncodedSet(arrays, world.encoded.request_ids))
    arrays["carries"][:20, 1] = False
    left_out = fit_slot_calibration(model, EncodedSet(arrays, world.encoded.request_ids))
    arrays["feedback"][:20, :, 1] = 1 - arrays["feedback"][:20, :, 1]
    assert fit_slot_calibration(model, EncodedSet(arrays, world.encoded.request_ids)) == left_out
    assert (left_out.slots[0], left_out.slots[2]) == (before.slots[0], before.slots[2])
    assert left_out.slots[1] != before.slots[1]
    assert fit_slot_calibration(model, world.encoded, objective=1) != before
    arrays["carries"][:, 2] = False
    with pytest.raises(DataError, match="slot 3"):
        fit_slot_calibration(model, EncodedSet(arrays, world.encoded.request_ids))
    with pytest.raises(DataError, match="at least one"):
        fit_isotonic(np.empty(0), np.empty(0))


@pytest.mark.parametrize(("candidates", "distance"), [(8, 0), (8, 1), (8, 4), (4, 2), (4, 4), (5, 1)])
def test_edited_lists_differ_in_exactly_so_many_slots(candidates: int, distance: int) -> None:
    rng = np.random.default_rng(1)
    logged = np.argsort(rng.random((50, candidates)), axis=1)[:, :4]
    lists = edited_lists(logged, candidates, distance, 6, seed=0)
    assert ((lists != logged[:, None]).sum(-1) == distance).all()
    assert (np.diff(np.sort(lists, axis=-1), axis=-1) > 0).all()
    assert lists.min() >= 0
    assert lists.max() < candidates
    if distance:
        assert len(np.unique(lists.reshape(50, -1), axis=0)) > 40
        assert {int(s) for s in np.nonzero(lists != logged[:, None])[2]} == {0, 1, 2, 3}
    assert np.array_equal(lists, edited_lists(logged, candidates, distance, 6, seed=0))


@pytest.mark.parametrize(("candidates", "distance"), [(4, 1), (8, 5), (8, -1)])
def test_distances_that_no_list_has_are_refused(candidates: int, distance: int) -> None:
    with pytest.raises(DataError, match=f"exactly {distance} slots"):
        edited_lists(np.array([[3, 1, 0, 2]]), candidates, distance, 1, seed=0)


def test_an_evaluator_that_knows_nothing_is_broken_down_and_calibrated(tmp_path: Path) -> None:
    """Random weights: beliefs are off everywhere, and a map a slot brings them to the slot's base rate at least."""
    simulate("mixed", "small", tmp_path / "data", train=60, validation=1500, test=120)
    (tmp_path / "rows").mkdir()
    join_by_id(tmp_path / "data", tmp_path / "rows")
    encode_splits(tmp_path / "rows", load_schema(tmp_path / "data"), tmp_path / "encoded")
    encoder = load_encoder(tmp_path / "encoded" / "encoder.json")
    model = crafted.evaluator(encoder, scale=0.4)
    validation, test = (load_encoded(tmp_path / "encoded" / split) for split in ("validation", "test"))
    world = load_world(tmp_path / "data")
    log = pq.read_table(tmp_path / "data" / "impressions.parquet").slice(1560)
    users, candidates = log["user_id"].to_numpy(), np.array(log["candidate_ids"].to_pylist())
    found = break_down(model, validation, test, world, users, candidates)
    plain = diagnose(model, test, world, users, candidates)
    assert found.ece_logged_calibrated < 0.5 * plain.ece_logged
    assert found.ece_random_calibrated < 0.5 * plain.ece_random
    slots, deciles, distances = found.by_slot, found.by_decile, found.by_edit_distance
    assert [g.of for g in slots] == [1, 2, 3, 4]
    assert [g.of for g in deciles] == list(range(1, 11))
    assert [(g.of, g.count) for g in distances] == [(0, 120), *((d, 120 * EDITED) for d in range(1, 5))]
    assert sum(g.count for g in slots) == sum(g.count for g in deciles) == 120 * LISTS * 4
    for groups in (slots, deciles):  # two partitions of the same increments
        error = sum(g.count * g.rmse**2 for g in groups)
        assert error == pytest.approx(sum(g.count * g.rmse**2 for g in slots))
        assert all(g.rmse >= abs(g.believed - g.true) for g in groups)
    believed = [g.believed for g in deciles]
    assert believed == sorted(believed)
    shown, _, _ = logged_lists(test, np.arange(120), 4, None)
    truth = world.true_values(users, candidates, shown[:, None])
    assert distances[0].true == pytest.approx(truth.mean())
