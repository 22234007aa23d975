"""Older bundles load and answer as they did; the present format follows rules, standing ones above all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import crafted
import numpy as np
import onnx
import pytest

from degre_prod.artefact import file_digest
from degre_prod.bundle import Bundle, load_bundle
from degre_prod.bundle.warmup import read_lines
from degre_prod.constraints.check import check_list
from degre_prod.constraints.rules import compile_rules
from degre_prod.constraints.settle import candidate_columns
from degre_prod.constraints.spec import Constraints, GapRule, QuotaRule, StandingConstraints
from degre_prod.encoding.fit import fit_encoder
from degre_prod.errors import BundleError
from degre_prod.training.export import Lineage, write_bundle
from degre_prod.training.modules import load_generator

FORMAT_2 = Path(__file__).parents[1] / "data" / "bundle_format_2"  # written before there were constraints
LINEAGE = Lineage("crafted", crafted.MOMENT, "a", "b", "c", (crafted.MOMENT, crafted.MOMENT), {})
ROWS = crafted.rows((6, 4, 1, 5, 6, 6, 6), seed=9)


def write(folder: Path, standing: StandingConstraints, trust_region: int | None = None) -> Bundle:
    encoder = fit_encoder(crafted.schema(**crafted.rich(constraints=standing)), ROWS)
    generator = crafted.generator(encoder, scale=0.8)
    return write_bundle(folder, generator, encoder, ROWS, LINEAGE, trust_region=trust_region)


def agreed(folder: Path, **changes: Any) -> Path:
    """Change a manifest, and let its list of files say what is there."""
    document = json.loads((folder / "manifest.json").read_text()) | changes
    files = {f.name: file_digest(f) for f in folder.iterdir() if f.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps(document | {"files": files}))
    return folder


def test_format_2_loads_answers_as_it_did_and_follows_no_rules() -> None:
    bundle = load_bundle(FORMAT_2)  # which replays its warm-up
    assert (bundle.manifest.format_version, bundle.follows_rules, bundle.trust_region) == (2, False, None)
    assert len(list(read_lines(FORMAT_2 / "warmup.jsonl", bundle.schema))) == 5
    request, user, items = ROWS[0]
    encoded = bundle.encoder.encode(request, user, items)
    assert bundle.decode(encoded, 3).logits is not None
    rules = compile_rules(Constraints(exclude=(request.candidate_ids[0],)), request.candidate_ids, {}, 3)
    with pytest.raises(BundleError, match="follows no rules"):
        bundle.decode(encoded, 3, rules)


def test_the_weights_of_format_2_are_still_those_of_its_graph() -> None:
    bundle, generator = load_bundle(FORMAT_2), load_generator(FORMAT_2)
    for request, user, items in ROWS:
        encoded = bundle.encoder.encode(request, user, items)
        batch = {name.rsplit("_", 1)[0]: crafted.torch.from_numpy(array)[None] for name, array in encoded.items()}
        batch["mask"] = crafted.torch.ones(1, len(request.candidate_ids), dtype=crafted.torch.bool)
        decoded = bundle.decode(encoded, 3)
        if decoded.margins.min() > 1e-4:
            assert generator.decode(batch, 3)[0][0, : len(decoded.order)].tolist() == decoded.order.tolist()


def test_format_1_loads_and_gives_no_logits(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(FORMAT_2, folder)
    graph = onnx.load(folder / "generator.onnx")
    for output in [o for o in graph.graph.output if o.name in ("logits", "runner_up")]:
        graph.graph.output.remove(output)
    onnx.save(graph, folder / "generator.onnx")
    bundle = load_bundle(agreed(folder, format_version=1))
    request, user, items = ROWS[0]
    decoded = bundle.decode(bundle.encoder.encode(request, user, items), 3)
    assert (len(decoded.order), decoded.logits, decoded.runner_up) == (3, None, None)


@pytest.mark.parametrize("name", ["encode.onnx", "step.onnx"])
def test_format_3_needs_both_step_graphs(name: str, tmp_path: Path) -> None:
    write(tmp_path / "bundle", StandingConstraints())
    (tmp_path / "bundle" / name).unlink()
    with pytest.raises(BundleError, match=f"{name} does not load"):
        load_bundle(agreed(tmp_path / "bundle"))


def test_standing_constraints_are_told_and_hold(tmp_path: Path) -> None:
    standing = StandingConstraints(
        gap=GapRule(by="group", slots=2), quotas=(QuotaRule(by="badge", value="new", min=1, max=2),)
    )
    bundle, free = write(tmp_path / "bundle", standing), write(tmp_path / "free", StandingConstraints())
    assert bundle.manifest.format_version == 3
    assert bundle.manifest.constraints == (
        "distinct",
        "gap: items of the same group at least 2 slots apart",
        "quota: at least 1 and at most 2 with badge = new",
    )
    assert free.manifest.constraints == ("distinct",)
    different = held = 0
    for request, user, items in ROWS:
        answer = bundle.answer(request, user, items, 3)
        different += answer != free.answer(request, user, items, 3)
        columns, ids = candidate_columns(bundle.schema, request, items), list(request.candidate_ids)
        rules = compile_rules(standing, ids, columns, min(3, len(ids)))
        try:
            check_list(rules, [ids.index(i) for i in answer])
            held += 1
        except Exception:  # candidates that admit no such list: of one group, or without a badge
            assert len(ids) < 6
    assert different
    assert held >= 4


def test_the_trust_region_holds(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", StandingConstraints(), trust_region=4)
    assert bundle.manifest.trust_region == 4
    free = write(tmp_path / "free", StandingConstraints())
    answers = [(b.answer(r, u, i, 3), list(r.candidate_ids)) for b in (bundle, free) for r, u, i in ROWS]
    inside = [np.isin(answer, ids[:4]).all() for answer, ids in answers]
    assert all(inside[: len(ROWS)])
    assert not all(inside[len(ROWS) :])
