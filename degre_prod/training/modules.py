"""Networks on disk: weights as safetensors, beside them the spec that rebuilds the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

from degre_prod.artefact import write_json, written_aside
from degre_prod.encoding.encoder import Layout
from degre_prod.errors import MismatchError
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.models.generator import Generator, GeneratorSpec
from degre_prod.models.judge import Judge, JudgeSpec
from degre_prod.models.member import EvaluatorSpec
from degre_prod.models.pointwise import PointwiseScorer

M = TypeVar("M", bound=nn.Module)


def save_module(model: nn.Module, spec: Any, folder: Path, name: str) -> None:
    """`{name}.safetensors` and `{name}.json`."""
    with written_aside(folder / f"{name}.safetensors") as aside:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, aside)
    write_json(folder / f"{name}.json", asdict(spec))


def load_evaluator(folder: Path, *, pessimism: float = 0.0) -> LookaheadEvaluator:
    """The evaluator of an artefact folder, all its members in one file, in evaluation mode."""
    raw = _read(folder, "evaluator")
    spec = EvaluatorSpec(
        layout=_layout(raw["layout"]),
        prefix_state=raw["prefix_state"],
        width=raw["width"],
        layers=raw["layers"],
        at_most_one=tuple(raw["at_most_one"]),
        weights_OL=tuple(tuple(w) for w in raw["weights_OL"]),
        mean_utility=raw["mean_utility"],
        head=raw["head"],
        members=raw["members"],
    )
    return _weights(LookaheadEvaluator(spec, pessimism=pessimism), folder, "evaluator")


def load_generator(folder: Path) -> Generator:
    """The generator of an artefact or bundle folder, in evaluation mode; one that names no decoder has a GRU."""
    raw = _read(folder, "generator")
    spec = GeneratorSpec(_layout(raw["layout"]), raw["width"], raw["encoder_layers"], raw.get("decoder", "gru"))
    # Before there were two decoders the weights had other names.
    older = {"initial.": "decoder.initial.", "cell.": "decoder.cell."}
    return _weights(Generator(spec), folder, "generator", older)


def load_judge(folder: Path) -> Judge:
    """The judge of an artefact folder, in evaluation mode."""
    raw = _read(folder, "judge")
    weights = tuple(tuple(w) for w in raw["weights_OL"])
    return _weights(Judge(JudgeSpec(_layout(raw["layout"]), raw["width"], raw["layers"], weights)), folder, "judge")


def load_pointwise(folder: Path, layout: Layout, width: int, slots: int) -> PointwiseScorer:
    """The pointwise baseline trained beside the evaluator."""
    return _weights(PointwiseScorer(layout, width, slots), folder, "pointwise")


def _layout(raw: dict[str, Any]) -> Layout:
    return Layout(
        num=raw["num"],
        cat={g: tuple(sizes) for g, sizes in raw["cat"].items()},
        list_length=raw["list_length"],
        objectives=raw["objectives"],
        position_free=raw["position_free"],
    )


def _read(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"{name}.json").read_text()))


def _weights(model: M, folder: Path, name: str, renamed: Mapping[str, str] | None = None) -> M:
    weights = load_file(folder / f"{name}.safetensors")
    for old, new in (renamed or {}).items():
        weights = {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in weights.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise MismatchError(f"{folder}: {name}.safetensors does not fit {name}.json: {error}") from error
    return model.eval()
