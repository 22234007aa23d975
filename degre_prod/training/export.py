"""Write a bundle: the generator as ONNX with its greedy decoding inside the graph, weights, encoder, warm-up, card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from degre_prod.artefact import file_digest, replace_folder, write_text
from degre_prod.bundle.decoder import open_decoder
from degre_prod.bundle.load import Bundle, load_bundle, standing_rules
from degre_prod.bundle.manifest import (
    CARD,
    ENCODE_ONNX,
    ENCODER,
    MANIFEST,
    ONNX,
    STEP_ONNX,
    WARMUP,
    Manifest,
)
from degre_prod.bundle.warmup import Recorded, to_line
from degre_prod.constraints.spec import StandingConstraints
from degre_prod.encoding.encoder import Encoder, save_encoder
from degre_prod.models.generator import Generator
from degre_prod.requests import FeatureColumns, Request
from degre_prod.training.greedy_graph import export_onnx
from degre_prod.training.modules import save_module
from degre_prod.training.step_graph import export_steps

CLEAR_MARGIN = 1e-3  # logits; far above what two processors differ by


@dataclass(frozen=True)
class Lineage:
    """What a bundle says of its making."""

    name: str
    created: datetime
    made_from: str
    evaluator_made_from: str
    mined_made_from: str
    training_window: tuple[datetime, datetime]
    metrics: dict[str, float]
    parent: str | None = None


def write_bundle(
    folder: Path,
    generator: Generator,
    encoder: Encoder,
    warmup: Sequence[tuple[Request, FeatureColumns, FeatureColumns]],
    lineage: Lineage,
    *,
    trust_region: int | None = None,
) -> Bundle:
    """Write a bundle aside, verify it, rename it to `folder` (replacing an older one), and return it loaded.

    `trust_region`: the one the generator was mined and trained with.
    """
    schema = encoder.schema
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        export_onnx(generator, aside / ONNX)
        export_steps(generator, aside / ENCODE_ONNX, aside / STEP_ONNX)
        save_module(generator, generator.spec, aside, "generator")
        save_encoder(encoder, aside / ENCODER)
        write_text(aside / "schema.yaml", schema.to_yaml())
        write_text(aside / WARMUP, warmup_text(aside, encoder, warmup, trust_region))
        write_text(aside / CARD, card(schema.name, lineage))
        manifest = Manifest(
            name=lineage.name,
            created=lineage.created,
            dataset=schema.name,
            feature_service="rerank_v1",
            list_length=schema.list_length,
            max_candidates=schema.max_candidates,
            constraints=("distinct", *in_words(schema.constraints)),
            trust_region=trust_region,
            encoder_sha256=encoder.digest(),
            made_from=lineage.made_from,
            evaluator_made_from=lineage.evaluator_made_from,
            mined_made_from=lineage.mined_made_from,
            training_window=lineage.training_window,
            metrics=lineage.metrics,
            parent=lineage.parent,
            files={f.name: file_digest(f) for f in sorted(aside.iterdir())},
        )
        write_text(aside / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        load_bundle(aside)
        aside.chmod(0o755)
        replace_folder(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return load_bundle(folder)


def in_words(constraints: StandingConstraints) -> Iterator[str]:
    """Each standing constraint as the manifest and the card say it."""
    if constraints.gap is not None:
        yield f"gap: items of the same {constraints.gap.by} at least {constraints.gap.slots} slots apart"
    for q in constraints.quotas:
        bounds = " and ".join(
            f"{name} {bound}" for name, bound in (("at least", q.min or None), ("at most", q.max)) if bound is not None
        )
        yield f"quota: {bounds} with {q.by} = {q.value}"


def warmup_text(
    folder: Path,
    encoder: Encoder,
    warmup: Sequence[tuple[Request, FeatureColumns, FeatureColumns]],
    trust_region: int | None,
) -> str:
    """Recorded answers of the exported model to these requests, one JSON line each.

    Close calls are left out (unless all are): another processor may round them the other way, and that is no damage.
    """
    schema, decoder = encoder.schema, open_decoder(folder / ONNX, folder / ENCODE_ONNX, folder / STEP_ONNX)
    clear: list[str] = []
    close: list[str] = []
    for request, user, items in warmup:
        rules = standing_rules(schema, request, items, schema.list_length, trust_region)
        decoded = decoder.decode(encoder.encode(request, user, items), schema.list_length, rules)
        answer = [request.candidate_ids[c] for c in decoded.order]
        line = to_line(Recorded(request, user, items, tuple(answer))) + "\n"
        (clear if decoded.margins.min() >= CLEAR_MARGIN else close).append(line)
    return "".join(clear or close)


def card(dataset: str, lineage: Lineage) -> str:
    """A page for people: what the model is and how it did."""
    first, last = lineage.training_window
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(lineage.metrics.items()))
    return (
        f"# {lineage.name}\n\nDeGRe generator trained on `{dataset}`, requests from {first:%Y-%m-%d %H:%M} to "
        f"{last:%Y-%m-%d %H:%M} UTC, made {lineage.created:%Y-%m-%d %H:%M} UTC.\n\n"
        f"Parent bundle: {lineage.parent or 'none'}.\n\n| metric | value |\n|---|---|\n{rows}\n"
    )
