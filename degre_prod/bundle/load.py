"""Load and verify a bundle: hashes first, then the warm-up requests must get their recorded answers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from degre_prod.bundle.manifest import ENCODER, MANIFEST, ONNX, WARMUP, Manifest, check_files, read_manifest
from degre_prod.bundle.warmup import read_lines
from degre_prod.encoding.encoder import Encoded, Encoder, load_encoder
from degre_prod.errors import BundleError
from degre_prod.requests import FeatureColumns, Id, Request
from degre_prod.schema import DataSchema

ALONE = 1e8  # a margin above this means that no other item was left


@dataclass(frozen=True, slots=True)
class Decoded:
    """A greedy list: order (length,) of indices into the candidates, margins (length,) float32, inf where nothing else was left."""

    order: np.ndarray
    margins: np.ndarray


@dataclass(frozen=True)
class Bundle:
    """A verified bundle with its ONNX Runtime session (one thread); safe to call from several threads."""

    path: Path
    manifest: Manifest
    manifest_sha256: str
    encoder: Encoder
    session: Any
    input_names: tuple[str, ...]

    @property
    def schema(self) -> DataSchema:
        """The schema of the data the bundle was trained on."""
        return self.encoder.schema

    def decode(self, encoded: Encoded, length: int) -> Decoded:
        """The greedy list of one encoded request, cut at `length`, at L and at the number of candidates."""
        C = len(encoded["prior_rank_C"])
        inputs = {name: _named(encoded, name)[None] for name in self.input_names if name != "mask"}
        inputs["mask"] = np.ones((1, C), bool)
        order, margins = self.session.run(None, inputs)
        take = min(length, C, order.shape[1])
        margin = margins[0, :take]
        return Decoded(order[0, :take], np.where(margin > ALONE, np.float32(np.inf), margin))

    def answer(self, request: Request, user: FeatureColumns, items: FeatureColumns, length: int) -> list[Id]:
        """Ids of the list for one request with its features: encode, decode."""
        decoded = self.decode(self.encoder.encode(request, user, items), length)
        return [request.candidate_ids[c] for c in decoded.order]


def load_bundle(path: Path) -> Bundle:
    """Verify and open a bundle folder; raises BundleError when a file changed, is missing, or the warm-up answers differ."""
    manifest = read_manifest(path)
    check_files(path, manifest)
    encoder = load_encoder(path / ENCODER)
    if encoder.digest() != manifest.encoder_sha256:
        raise BundleError(f"{path}: the encoder is not the one the generator was trained with")
    session = open_session(path / ONNX)
    names = tuple(i.name for i in session.get_inputs())
    sha256 = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    bundle = Bundle(path, manifest, sha256, encoder, session, names)
    verify_answers(bundle)
    return bundle


def open_session(file: Path) -> Any:
    """An ONNX Runtime session on one thread; raises BundleError when the file is no model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises many types of its own
        raise BundleError(f"{file} does not load in ONNX Runtime: {error}") from error


def verify_answers(bundle: Bundle) -> None:
    """Replay the warm-up requests; raises BundleError naming the first whose answer differs from the recorded one."""
    file = bundle.path / WARMUP
    count = 0
    try:
        for recorded in read_lines(file, bundle.schema):
            answer = tuple(bundle.answer(recorded.request, recorded.user, recorded.items, bundle.manifest.list_length))
            if answer != recorded.answer:
                raise BundleError(
                    f"{bundle.path}: warm-up request {recorded.request.request_id} now gets {answer}, recorded {recorded.answer}"
                )
            count += 1
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{file} is malformed: {error!r}") from error
    if count == 0:
        raise BundleError(f"{file} holds no request: a bundle must prove itself on at least one")


def _named(encoded: Encoded, name: str) -> np.ndarray:
    return encoded[f"{name}_C"] if name == "prior_rank" else encoded[_axes(name)]


def _axes(name: str) -> str:
    return f"{name}_CF" if name.startswith(("item", "prior")) else f"{name}_F"
