"""Networks on disk: weights as safetensors, beside them the spec that rebuilds the network."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

from degre_prod.artefact import write_json, written_aside
from degre_prod.encoding.encoder import Layout
from degre_prod.errors import MismatchError
from degre_prod.models.evaluator import EvaluatorSpec, LookaheadEvaluator
from degre_prod.models.generator import Generator, GeneratorSpec
from degre_prod.models.pointwise import PointwiseScorer

M = TypeVar("M", bound=nn.Module)


def save_module(model: nn.Module, spec: Any, folder: Path, name: str) -> None:
    """`{name}.safetensors` and `{name}.json`."""
    with written_aside(folder / f"{name}.safetensors") as aside:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, aside)
    write_json(folder / f"{name}.json", asdict(spec))


def load_evaluator(folder: Path) -> LookaheadEvaluator:
    """The evaluator of an artefact folder, in evaluation mode."""
    raw = _read(folder, "evaluator")
    spec = EvaluatorSpec(
        layout=_layout(raw["layout"]),
        prefix_state=raw["prefix_state"],
        width=raw["width"],
        layers=raw["layers"],
        at_most_one=tuple(raw["at_most_one"]),
        weights_OL=tuple(tuple(w) for w in raw["weights_OL"]),
        mean_utility=raw["mean_utility"],
    )
    return _weights(LookaheadEvaluator(spec), folder, "evaluator")


def load_generator(folder: Path) -> Generator:
    """The generator of an artefact or bundle folder, in evaluation mode."""
    raw = _read(folder, "generator")
    return _weights(
        Generator(GeneratorSpec(_layout(raw["layout"]), raw["width"], raw["encoder_layers"])), folder, "generator"
    )


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


def _weights(model: M, folder: Path, name: str) -> M:
    try:
        model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    except RuntimeError as error:
        raise MismatchError(f"{folder}: {name}.safetensors does not fit {name}.json: {error}") from error
    return model.eval()
