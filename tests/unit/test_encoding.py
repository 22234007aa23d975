"""Whole requests: defined encodings for what is missing, unknown or stale, the promised widths, the same from JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import crafted
import numpy as np
import pytest
from crafted import N
from helpers import small_schema
from hypothesis import given, settings
from hypothesis import strategies as st

from degre_prod.encoding.columns import MISSING, UNKNOWN
from degre_prod.encoding.encoder import Encoder, load_encoder, save_encoder
from degre_prod.encoding.fit import fit_encoder
from degre_prod.encoding.splits import split_of
from degre_prod.encoding.store import load_encoded, save_encoded
from degre_prod.errors import BundleError, FeatureError, TrainingError
from degre_prod.requests import FeatureColumns, RecentEvent, Request
from degre_prod.schema import DataSchema, Feature, FeatureTable, Objective

NAN = float("nan")
NOW = 1_767_225_600_000_000


def f32(*values: float | None) -> np.ndarray:
    return np.array([NAN if v is None else v for v in values], np.float32)


# -- whole requests ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rich() -> tuple[Encoder, list[crafted.Row]]:
    rows = crafted.rows([int(n) for n in np.random.default_rng(3).integers(1, N + 1, 40)], seed=2)
    return fit_encoder(crafted.schema(**crafted.rich()), rows), rows


def widths(encoder: Encoder, encoded: dict[str, np.ndarray], C: int) -> None:
    """The layout is what the arrays are, and everything is a finite float32 or an index in range."""
    layout = encoder.layout()
    for group in ("item", "prior", "user", "context"):
        rows = (C,) if group in ("item", "prior") else ()
        axis = "CF" if rows else "F"
        num, cat = encoded[f"{group}_num_{axis}"], encoded[f"{group}_cat_{axis}"]
        assert num.shape == (*rows, layout.num[group])
        assert cat.shape == (*rows, len(layout.cat[group]))
        assert num.dtype == np.float32
        assert cat.dtype == np.int64
        assert np.isfinite(num).all()
        assert (cat >= 0).all()
        assert (cat < np.array(layout.cat[group], np.int64)).all()
    assert encoded["prior_rank_C"].tolist() == list(range(C))
    assert len(encoded) == 9


def test_layout_and_arrays_agree(rich: tuple[Encoder, list[crafted.Row]]) -> None:
    encoder, rows = rich
    for request, user, items in rows:
        widths(encoder, encoder.encode(request, user, items), len(request.candidate_ids))


def names(prefix: str) -> st.SearchStrategy[list[str]]:
    return st.integers(0, 3).map(lambda count: [f"{prefix}{i}" for i in range(count)])


@st.composite
def schemas(draw: st.DrawFn) -> DataSchema:
    """Any mix of columns on every side."""

    def table(prefix: str) -> FeatureTable:
        features = [
            Feature(name=n, kind="numeric", transform=draw(st.sampled_from(["standard", "log1p"])))
            for n in draw(names(f"{prefix}n"))
        ]
        features += [Feature(name=n, kind="categorical") for n in draw(names(f"{prefix}c"))]
        features += [Feature(name=n, kind="vector", size=draw(st.integers(1, 3))) for n in draw(names(f"{prefix}v"))]
        features += [Feature(name=n, kind="id_sequence", max_length=3) for n in draw(names(f"{prefix}s"))]
        return FeatureTable(features=tuple(draw(st.permutations(features))))

    def plain(prefix: str) -> tuple[Feature, ...]:
        kinds = draw(st.lists(st.sampled_from(["numeric", "categorical"]), max_size=3))
        return tuple(Feature(name=f"{prefix}{i}", kind=kind) for i, kind in enumerate(kinds))

    return DataSchema(
        name="any",
        id_type="string",
        list_length=2,
        max_candidates=5,
        objectives=(Objective(name="click"),),
        user=table("u"),
        item=table("i"),
        context=plain("x"),
        candidate_features=plain("r"),
        scores=tuple(draw(names("score"))),
        recent_event_types=tuple(draw(names("event"))),
    )


def values(draw: st.DrawFn, features: tuple[Feature, ...], rows: int) -> FeatureColumns:
    out: dict[str, Any] = {}
    number = st.just(NAN) | st.floats(-1e6, 1e6, width=32)
    for f in features:
        if f.kind == "numeric":
            out[f.name] = f32(*(draw(number) for _ in range(rows)))
        elif f.kind == "vector":
            out[f.name] = np.array([[draw(number)] * (f.size or 0) for _ in range(rows)], np.float32)
        elif f.kind == "categorical":
            out[f.name] = [draw(st.none() | st.sampled_from("abc")) for _ in range(rows)]
        else:
            out[f.name] = [
                draw(st.none() | st.lists(st.sampled_from(["i0", "i1", "other"]), max_size=3)) for _ in range(rows)
            ]
    return FeatureColumns(out, rows)


@st.composite
def any_rows(draw: st.DrawFn) -> tuple[DataSchema, list[crafted.Row]]:
    schema = draw(schemas())
    rows = []
    for r in range(draw(st.integers(1, 3))):
        C = draw(st.integers(1, 5))
        ids = [f"i{c}" for c in range(C)]
        own = values(draw, schema.candidate_features, C)
        request = Request(
            request_id=f"r{r}",
            user_id="u",
            event_timestamp_us=NOW,
            candidate_ids=ids,
            context={n: v[0] for n, v in values(draw, schema.context, 1).values.items() if draw(st.booleans())},
            scores={n: f32(*range(C)) for n in schema.scores if draw(st.booleans())},
            candidate_features={n: v for n, v in own.values.items() if draw(st.booleans())},
            recent_events=[
                RecentEvent(draw(st.sampled_from([*ids, "other"])), kind, NOW - draw(st.integers(0, 10**12)))
                for kind in draw(st.lists(st.sampled_from([*schema.recent_event_types, "strange"]), max_size=4))
            ],
        )
        rows.append((request, values(draw, schema.user.features, 1), values(draw, schema.item.features, C)))
    return schema, rows


@settings(max_examples=60, deadline=None)
@given(any_rows())
def test_any_schema_gives_the_widths_its_layout_promises(case: tuple[DataSchema, list[crafted.Row]]) -> None:
    schema, rows = case
    encoder = fit_encoder(schema, rows)
    again = Encoder(type(encoder.spec).model_validate_json(encoder.to_json()))
    assert again.digest() == encoder.digest()
    for request, user, items in rows:
        encoded = encoder.encode(request, user, items)
        widths(encoder, encoded, len(request.candidate_ids))
        for name, array in again.encode(request, user, items).items():
            np.testing.assert_array_equal(array, encoded[name])


def test_an_encoder_read_from_its_file_encodes_bit_equally(
    rich: tuple[Encoder, list[crafted.Row]], tmp_path: Path
) -> None:
    encoder, rows = rich
    save_encoder(encoder, tmp_path / "encoder.json")
    again = load_encoder(tmp_path / "encoder.json")
    assert again == encoder
    for row in rows:
        before, after = encoder.encode(*row), again.encode(*row)
        for name, array in before.items():
            assert array.tobytes() == after[name].tobytes()


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 1}', "\x00"])
def test_a_broken_encoder_file_is_a_bundle_error_on_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "encoder.json").write_text(text)
    with pytest.raises(BundleError, match=r"encoder\.json is not a readable encoder: .") as caught:
        load_encoder(tmp_path / "encoder.json")
    assert "\n" not in str(caught.value)


def test_an_encoder_of_another_format_is_refused(rich: tuple[Encoder, list[crafted.Row]], tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text(rich[0].to_json().replace('"format_version":2,"', '"format_version":9,"'))
    with pytest.raises(BundleError, match="format_version"):
        load_encoder(tmp_path / "encoder.json")


def both_sides(items: int = 2) -> tuple[DataSchema, list[crafted.Row]]:
    """Rows over every kind of feature on both sides; some values missing, so that flags exist."""
    schema = small_schema("int64")
    rng = np.random.default_rng(0)

    def table(rows: int, missing: bool) -> FeatureColumns:
        numbers = rng.normal(size=(rows, 5)).astype(np.float32)
        numbers[missing] = NAN
        return FeatureColumns(
            {
                "amount": numbers[:, 0],
                "other_amount": numbers[:, 1],
                "group": [None if missing else "a"] * rows,
                "position": numbers[:, 2:],
                "history": [None if missing else [1, 2]] * rows,
            },
            rows,
        )

    requests = [Request(f"r{i}", i, NOW, list(range(items))) for i in range(12)]
    return schema, [(r, table(1, i == 0), table(items, i == 1)) for i, r in enumerate(requests)]


def test_an_absent_entity_has_everything_missing_and_says_so() -> None:
    """Unknown and stale entities arrive as all values missing: this is their encoding."""
    schema, rows = both_sides()
    encoder = fit_encoder(schema, rows)
    request, user, items = rows[0]
    absent, present = encoder.encode(request, user, items), encoder.encode(rows[2][0], rows[2][1], rows[2][2])
    flags = [0, 1, 0, 1, 0, 0, 0, 1, 1]  # amount, other, position (3): value(s) and flag; then `absent`
    assert absent["user_num_F"].tolist() == flags
    assert absent["user_cat_F"].tolist() == [MISSING]
    assert present["user_num_F"][[1, 3, 7, 8]].tolist() == [0, 0, 0, 0]
    stale_items = encoder.encode(rows[1][0], rows[1][1], rows[1][2])
    assert stale_items["item_num_CF"].tolist() == [flags, flags]
    assert stale_items["item_cat_CF"].tolist() == [[MISSING], [MISSING]]


def test_one_value_is_enough_not_to_be_absent() -> None:
    schema, rows = both_sides()
    encoder = fit_encoder(schema, rows)
    request, user, items = rows[0]
    for name, value in (("amount", f32(1.0)), ("group", ["zzz"]), ("history", [[1]])):
        known = FeatureColumns({**user.values, name: value}, 1)
        encoded = encoder.encode(request, known, items)
        assert encoded["user_num_F"][-1] == 0
        assert encoded["user_cat_F"].tolist() == [UNKNOWN if name == "group" else MISSING]


def test_values_only_the_request_has_may_be_absent(rich: tuple[Encoder, list[crafted.Row]]) -> None:
    encoder, rows = rich
    request, user, items = rows[5]
    bare = Request(request.request_id, request.user_id, request.event_timestamp_us, request.candidate_ids)
    encoded = encoder.encode(bare, user, items)
    widths(encoder, encoded, len(request.candidate_ids))
    assert (encoded["prior_cat_CF"] == MISSING).all()
    assert (encoded["context_cat_F"] == MISSING).all()
    none = Request(
        request.request_id,
        request.user_id,
        request.event_timestamp_us,
        request.candidate_ids,
        context={"hour": None, "device": None},
        scores={"upstream": [None] * len(request.candidate_ids)},
        candidate_features={"discount": [None] * len(request.candidate_ids)},
    )
    for name, array in encoder.encode(none, user, items).items():
        np.testing.assert_array_equal(array, encoded[name])


def test_rows_that_do_not_fit_the_candidates_are_refused(rich: tuple[Encoder, list[crafted.Row]]) -> None:
    encoder, rows = rich
    request, user, items = next(row for row in rows if len(row[0].candidate_ids) > 1)
    with pytest.raises(FeatureError, match="item rows and 1 user rows"):
        encoder.encode(Request("r", 1, NOW, [*request.candidate_ids, 5000]), user, items)


def test_fitting_on_nothing_is_an_error() -> None:
    with pytest.raises(TrainingError, match="validation_start"):
        fit_encoder(crafted.schema(), [])


# -- on disk -------------------------------------------------------------------------------------------------------


def test_encoded_requests_come_back_padded_and_marked(tmp_path: Path) -> None:
    rows = crafted.rows([3, 5])
    encoder = fit_encoder(crafted.schema(), rows)
    encoded = [encoder.encode(*row) for row in rows]
    save_encoded(
        tmp_path,
        encoded,
        shown=[np.array([2, 0]), np.array([4, 1, 3])],
        feedback=[np.array([[1, NAN], [0, 0]], np.float32), np.array([[0, 0, 1], [0, 0, 0]], np.float32)],
        request_ids=["a", "b"],
        timestamps=[1, 2],
    )
    back = load_encoded(tmp_path)
    assert (len(back), back.max_candidates, back.request_ids) == (2, 5, ("a", "b"))
    arrays = back.arrays
    assert arrays["mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert arrays["prior_rank"].tolist() == [[0, 1, 2, 5, 5], [0, 1, 2, 3, 4]]
    assert arrays["shown"].tolist() == [[2, 0, -1], [4, 1, 3]]
    assert arrays["carries"].tolist() == [[True, False, False], [True, True, True]]  # lost, and padding
    assert arrays["feedback"].tolist() == [[[1, 0, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 0]]]
    for r, n in enumerate((3, 5)):
        for name in ("item_num", "item_cat", "prior_num", "prior_cat"):
            np.testing.assert_array_equal(arrays[name][r, :n], encoded[r][f"{name}_CF"])
        np.testing.assert_array_equal(arrays["user_num"][r], encoded[r]["user_num_F"])


def test_a_request_belongs_to_the_split_of_its_time() -> None:
    assert [split_of(t, (10, 20)) for t in (9, 10, 19, 20)] == ["train", "validation", "validation", "test"]
