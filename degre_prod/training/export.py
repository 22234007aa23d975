"""Write a bundle: the generator as ONNX with its greedy decoding inside the graph, weights, encoder, warm-up, card."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from degre_prod.artefact import file_digest, write_text
from degre_prod.bundle.decoder import open_decoder
from degre_prod.bundle.load import Bundle, load_bundle
from degre_prod.bundle.manifest import CARD, ENCODER, MANIFEST, ONNX, WARMUP, Manifest
from degre_prod.bundle.warmup import Recorded, to_line
from degre_prod.encoding.encoder import Encoder, save_encoder
from degre_prod.encoding.store import CANDIDATE_ARRAYS, REQUEST_ARRAYS
from degre_prod.models.generator import Generator, GeneratorSpec
from degre_prod.requests import FeatureColumns, Request
from degre_prod.training.modules import save_module

INPUTS = (*CANDIDATE_ARRAYS, *REQUEST_ARRAYS, "mask", "prior_rank")
OPSET = 17


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


class _Greedy(nn.Module):
    """The graph that is exported: inputs in the order of INPUTS, outputs order_BL and margins_BL."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        batch = dict(zip(INPUTS, tensors, strict=True))
        return self.generator.decode(batch, self.generator.spec.layout.list_length)


def export_onnx(generator: Generator, file: Path) -> None:
    """Write the greedy graph; requests and candidates stay dynamic. Only the legacy exporter kept both so (torch 2.13)."""
    axes: dict[str, dict[int, str]] = {
        name: {0: "B", 1: "C"} if name in (*CANDIDATE_ARRAYS, "mask", "prior_rank") else {0: "B"} for name in INPUTS
    }
    axes |= {"order": {0: "B"}, "margins": {0: "B"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation and tracer notes
        torch.onnx.export(
            _Greedy(generator.eval()),
            example_inputs(generator.spec, candidates=generator.spec.layout.list_length + 3),
            str(file),
            input_names=list(INPUTS),
            output_names=["order", "margins"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def example_inputs(spec: GeneratorSpec, *, candidates: int) -> tuple[Tensor, ...]:
    """Two requests of zeros in the order of INPUTS, enough to trace the graph."""
    B, layout = 2, spec.layout
    tensors: dict[str, Tensor] = {
        "mask": torch.ones(B, candidates, dtype=torch.bool),
        "prior_rank": torch.arange(candidates).expand(B, -1),
    }
    for name in (*CANDIDATE_ARRAYS, *REQUEST_ARRAYS):
        group, kind = name.rsplit("_", 1)
        width = layout.num[group] if kind == "num" else len(layout.cat[group])
        shape = (B, candidates, width) if name in CANDIDATE_ARRAYS else (B, width)
        tensors[name] = torch.zeros(shape, dtype=torch.float32 if kind == "num" else torch.int64)
    return tuple(tensors[name] for name in INPUTS)


def write_bundle(
    folder: Path,
    generator: Generator,
    encoder: Encoder,
    warmup: Sequence[tuple[Request, FeatureColumns, FeatureColumns]],
    lineage: Lineage,
) -> Bundle:
    """Write a bundle aside, verify it, rename it to `folder` (replacing an older one), and return it loaded."""
    schema = encoder.schema
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        export_onnx(generator, aside / ONNX)
        save_module(generator, generator.spec, aside, "generator")
        save_encoder(encoder, aside / ENCODER)
        write_text(aside / "schema.yaml", schema.to_yaml())
        write_text(aside / WARMUP, warmup_text(aside, encoder, warmup))
        write_text(aside / CARD, card(schema.name, lineage))
        manifest = Manifest(
            name=lineage.name,
            created=lineage.created,
            dataset=schema.name,
            feature_service="rerank_v1",
            list_length=schema.list_length,
            max_candidates=schema.max_candidates,
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
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return load_bundle(folder)


def warmup_text(
    folder: Path, encoder: Encoder, warmup: Sequence[tuple[Request, FeatureColumns, FeatureColumns]]
) -> str:
    """Recorded answers of the exported model to these requests, one JSON line each."""
    decoder = open_decoder(folder / ONNX)
    lines = []
    for request, user, items in warmup:
        decoded = decoder.decode(encoder.encode(request, user, items), encoder.schema.list_length)
        answer = [request.candidate_ids[c] for c in decoded.order]
        lines.append(to_line(Recorded(request, user, items, tuple(answer))) + "\n")
    return "".join(lines)


def card(dataset: str, lineage: Lineage) -> str:
    """A page for people: what the model is and how it did."""
    first, last = lineage.training_window
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(lineage.metrics.items()))
    return (
        f"# {lineage.name}\n\nDeGRe generator trained on `{dataset}`, requests from {first:%Y-%m-%d %H:%M} to "
        f"{last:%Y-%m-%d %H:%M} UTC, made {lineage.created:%Y-%m-%d %H:%M} UTC.\n\n"
        f"Parent bundle: {lineage.parent or 'none'}.\n\n| metric | value |\n|---|---|\n{rows}\n"
    )
