"""`manifest.json`: what a bundle is, what it was made from, and the hash of every file in it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from degre_prod.artefact import file_digest
from degre_prod.errors import BundleError, explain

MANIFEST = "manifest.json"
ONNX = "generator.onnx"
ENCODE_ONNX = "encode.onnx"
STEP_ONNX = "step.onnx"
ENCODER = "encoder.json"
WARMUP = "warmup.jsonl"
CARD = "card.md"


class Manifest(BaseModel):
    """Format of manifest.json. Hashes are sha256 in hexadecimal; the training window is [first, last] event time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1, 2, 3] = Field(
        3, description="1: the graph gives no logits and no runners-up; 1 and 2: no graphs that follow rules"
    )
    name: str
    created: datetime
    dataset: str
    feature_service: str
    list_length: int = Field(ge=1)
    max_candidates: int = Field(ge=1)
    constraints: tuple[str, ...] = Field(("distinct",), description="of every list, in words; the schema has the rules")
    trust_region: int | None = Field(
        None, ge=1, description="only so many first candidates may be chosen, unless pinned"
    )
    encoder_sha256: str
    made_from: str = Field(description="hash of everything the generator depends on")
    evaluator_made_from: str
    mined_made_from: str
    training_window: tuple[datetime, datetime]
    metrics: dict[str, float]
    parent: str | None = None
    files: dict[str, str]


def read_manifest(folder: Path) -> Manifest:
    """Parse the manifest; raises BundleError when it is missing or malformed."""
    file = folder / MANIFEST
    try:
        return Manifest.model_validate_json(file.read_text())
    except FileNotFoundError:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}") from None
    except ValidationError as error:
        raise BundleError(f"{file} is malformed: {explain(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} is malformed: {error}") from error


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise BundleError unless exactly the listed files are there with the listed hashes."""
    present = {p.name for p in folder.iterdir() if p.is_file() and p.name != MANIFEST and not p.name.startswith(".")}
    listed = set(manifest.files)
    if present - listed:
        raise BundleError(f"{folder}: files the manifest does not list: {', '.join(sorted(present - listed))}")
    if listed - present:
        raise BundleError(f"{folder}: files missing: {', '.join(sorted(listed - present))}")
    for name, expected in sorted(manifest.files.items()):
        actual = file_digest(folder / name)
        if actual != expected:
            raise BundleError(f"{folder / name} was changed: its sha256 is {actual}, the manifest says {expected}")
