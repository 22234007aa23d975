"""A bundle refuses to serve when anything about it is not what its manifest says, and needs neither torch nor pickle."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC
from pathlib import Path
from typing import Any

import crafted
import numpy as np
import pytest

from degre_prod.artefact import file_digest
from degre_prod.bundle import load_bundle
from degre_prod.bundle.warmup import Recorded, read_lines, to_line
from degre_prod.encoding.fit import fit_encoder
from degre_prod.errors import BundleError
from degre_prod.requests import RecentEvent, Request
from degre_prod.training.export import Lineage, write_bundle

FILES = (
    "card.md",
    "encode.onnx",
    "encoder.json",
    "generator.json",
    "generator.onnx",
    "generator.safetensors",
    "schema.yaml",
    "step.onnx",
    "warmup.jsonl",
)
LINEAGE = Lineage("crafted-1", crafted.MOMENT, "a", "b", "c", (crafted.MOMENT, crafted.MOMENT), {"loss": 1.5}, "parent")
ROWS = crafted.rows((6, 4, 1, 5, 6), seed=9)


def write(folder: Path, rows: list[crafted.Row] = ROWS, seed: int = 0) -> None:
    encoder = fit_encoder(crafted.schema(**crafted.rich()), ROWS)
    write_bundle(folder, crafted.generator(encoder, seed=seed), encoder, rows, LINEAGE)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    write(folder)
    return folder


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    for file in original.iterdir():
        (tmp_path / "bundle" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "bundle"


def refused(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_manifest(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(document))


def replaced(folder: Path, name: str, content: str) -> None:
    """Change a file and let the manifest agree: what a hash cannot catch."""
    (folder / name).write_text(content)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, files=files | {name: file_digest(folder / name)})


def test_a_whole_bundle_loads_and_says_what_it_is(original: Path) -> None:
    assert {f.name for f in original.iterdir()} == {*FILES, "manifest.json"}
    bundle = load_bundle(original)
    assert (bundle.manifest.name, bundle.manifest.parent, bundle.manifest.metrics) == (
        "crafted-1",
        "parent",
        {"loss": 1.5},
    )
    assert (bundle.manifest.list_length, bundle.manifest.max_candidates) == (3, 6)
    assert bundle.manifest.created.astimezone(UTC) == crafted.MOMENT
    assert bundle.manifest_sha256 == file_digest(original / "manifest.json")
    assert bundle.schema == crafted.schema(**crafted.rich())
    assert "crafted-1" in (original / "card.md").read_text()


def test_the_list_of_files_is_tested_whole(original: Path) -> None:
    assert set(json.loads((original / "manifest.json").read_text())["files"]) == set(FILES)


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_refuses_to_load(copy: Path, name: str, where: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[where]] ^= 1
    (copy / name).write_bytes(content)
    assert f"{name} was changed" in refused(copy)


def test_a_flipped_byte_of_the_manifest_is_refused_or_seen_in_its_hash(copy: Path) -> None:
    """A rollout names a bundle by the hash of its manifest, so no change of it goes unseen."""
    content = (copy / "manifest.json").read_bytes()
    before = load_bundle(copy).manifest_sha256
    refusals = 0
    for at in range(0, len(content), 41):
        flipped = bytearray(content)
        flipped[at] ^= 1
        (copy / "manifest.json").write_bytes(flipped)
        try:
            assert load_bundle(copy).manifest_sha256 != before
        except BundleError:
            refusals += 1
    assert refusals > len(content) / 41 / 2  # most of it is hashes, keys and braces


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_refuses_to_load(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert f"files missing: {name}" in refused(copy)


def test_an_extra_file_refuses_to_load(copy: Path) -> None:
    (copy / "weights.pkl").write_bytes(b"x")
    assert "files the manifest does not list: weights.pkl" in refused(copy)


def test_a_folder_without_a_manifest_is_no_bundle(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    assert "is not a bundle: it has no manifest.json" in refused(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"name": 3}'])
def test_a_malformed_manifest_is_named(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    assert "manifest.json is malformed" in refused(copy)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format_version": 99}, "format_version"),
        ({"colour": "red"}, "colour"),
        ({"list_length": 2}, "list_length is 2, but 3"),
        ({"max_candidates": 50}, "max_candidates is 50, but 6"),
        ({"dataset": "other"}, "dataset is other, but crafted"),
        ({"encoder_sha256": "0" * 64}, "not the one the generator was trained with"),
    ],
)
def test_a_manifest_that_contradicts_the_rest_is_refused(copy: Path, changes: dict[str, Any], said: str) -> None:
    edit_manifest(copy, **changes)
    assert said in refused(copy)


def test_another_warm_up_answer_is_refused_and_the_request_named(copy: Path) -> None:
    lines = (copy / "warmup.jsonl").read_text().splitlines()
    at, changed = next((i, r) for i, r in enumerate(map(json.loads, lines)) if len(r["answer"]) > 1)
    changed["answer"] = changed["answer"][::-1]
    lines[at] = json.dumps(changed)
    replaced(copy, "warmup.jsonl", "\n".join(lines) + "\n")
    assert f"warm-up request {changed['request']['request_id']} now gets" in refused(copy)


def test_another_network_is_found_out_by_the_warm_up(copy: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", seed=7)
    (copy / "generator.onnx").write_bytes((tmp_path / "other" / "generator.onnx").read_bytes())
    files = json.loads((copy / "manifest.json").read_text())["files"]
    edit_manifest(copy, files=files | {"generator.onnx": file_digest(copy / "generator.onnx")})
    assert "now gets" in refused(copy)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "holds no request"), ("{}\n", "is malformed"), ("[1]\n", "is malformed"), ("x\n", "is malformed")],
)
def test_a_warm_up_that_proves_nothing_is_refused(copy: Path, text: str, said: str) -> None:
    replaced(copy, "warmup.jsonl", text)
    assert f"warmup.jsonl {said}" in refused(copy)


def test_a_graph_that_is_none_is_refused(copy: Path) -> None:
    replaced(copy, "generator.onnx", "not a graph")
    with pytest.raises(BundleError, match="does not load in ONNX Runtime"):
        load_bundle(copy)


def test_a_bundle_that_would_not_load_is_not_written_and_the_older_one_stays(copy: Path) -> None:
    before = file_digest(copy / "manifest.json")
    with pytest.raises(BundleError, match="holds no request"):
        write(copy, rows=[])
    assert load_bundle(copy).manifest_sha256 == before
    assert [p.name for p in copy.parent.iterdir()] == ["bundle"]
    write(copy, seed=3)
    assert load_bundle(copy).manifest_sha256 != before
    assert [p.name for p in copy.parent.iterdir()] == ["bundle"]


def test_loading_and_answering_needs_no_torch(original: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from degre_prod.bundle import load_bundle;"
        "load_bundle(Path(sys.argv[1])); print([m for m in ('torch', 'ray', 'feast', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(original)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_unpickles_nothing(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a pickle")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    load_bundle(original)


def test_warm_up_requests_come_back_as_they_were(tmp_path: Path) -> None:
    """NaN, None, text beyond ASCII, vectors, float32, recent events."""
    rows = [*ROWS]
    first, user, items = rows[0]
    odd = {**asdict(first), "request_id": 'r\u2028\n\x1e"é', "context": {"hour": float("nan"), "device": "ω\u0085"}}
    rows[0] = (Request(**{**odd, "recent_events": list(first.recent_events)}), user, items)
    file = tmp_path / "warmup.jsonl"
    file.write_text("".join(to_line(Recorded(*row, tuple(row[0].candidate_ids[::-1]))) + "\n" for row in rows))
    assert "NaN" not in file.read_text()  # which is no JSON
    schema = crafted.schema(**crafted.rich())
    encoder = fit_encoder(schema, rows)
    back = list(read_lines(file, schema))
    assert len(back) == len(rows)
    for (request, user, items), recorded in zip(rows, back, strict=True):
        again = recorded.request
        assert (again.request_id, again.user_id, again.event_timestamp_us) == (
            request.request_id,
            request.user_id,
            request.event_timestamp_us,
        )
        assert list(again.candidate_ids) == list(request.candidate_ids)
        assert recorded.answer == tuple(request.candidate_ids[::-1])
        assert all(isinstance(e, RecentEvent) for e in again.recent_events)
        assert list(again.recent_events) == list(request.recent_events)
        for before, after in ((user, recorded.user), (items, recorded.items)):
            assert after.rows == before.rows
            for feature in (*schema.user.features, *schema.item.features):
                if feature.name in after.values:
                    np.testing.assert_array_equal(after.values[feature.name], before.values[feature.name])
        encoded, expected = encoder.encode(again, recorded.user, recorded.items), encoder.encode(request, user, items)
        for name, array in expected.items():
            assert encoded[name].dtype == array.dtype
            assert encoded[name].tobytes() == array.tobytes()


def test_string_ids_survive_the_warm_up(tmp_path: Path) -> None:
    request, user, items = ROWS[3]
    named = Request("r", "ü", 5, [f"item {i}" for i in request.candidate_ids])
    (tmp_path / "warmup.jsonl").write_text(to_line(Recorded(named, user, items, ("item 1",))) + "\n")
    schema = crafted.schema(**crafted.rich(id_type="string"))
    (back,) = read_lines(tmp_path / "warmup.jsonl", schema)
    assert (back.request.user_id, back.request.candidate_ids, back.answer) == ("ü", named.candidate_ids, ("item 1",))
