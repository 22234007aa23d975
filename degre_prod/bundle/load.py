"""Load and verify a bundle: hashes first, then the warm-up requests must get their recorded answers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from degre_prod.artefact import file_digest
from degre_prod.bundle.decoder import Decoded, Decoder, open_decoder
from degre_prod.bundle.manifest import (
    ENCODE_ONNX,
    ENCODER,
    MANIFEST,
    ONNX,
    STEP_ONNX,
    WARMUP,
    Manifest,
    check_files,
    read_manifest,
)
from degre_prod.bundle.warmup import read_lines
from degre_prod.constraints.rules import Rules
from degre_prod.constraints.settle import candidate_columns, settle
from degre_prod.encoding.encoder import Encoded, Encoder, load_encoder
from degre_prod.errors import BundleError
from degre_prod.requests import FeatureColumns, Id, Request
from degre_prod.schema import DataSchema


@dataclass(frozen=True)
class Bundle:
    """A verified bundle; safe to call from several threads."""

    path: Path
    manifest: Manifest
    manifest_sha256: str
    encoder: Encoder
    decoder: Decoder

    @property
    def schema(self) -> DataSchema:
        """The schema of the data the bundle was trained on."""
        return self.encoder.schema

    @property
    def follows_rules(self) -> bool:
        """Whether `decode` takes rules: bundles of formats 1 and 2 do not."""
        return self.decoder.follows_rules

    @property
    def trust_region(self) -> int | None:
        """See Manifest."""
        return self.manifest.trust_region

    def decode(self, encoded: Encoded, length: int, rules: Rules | None = None) -> Decoded:
        """See `Decoder.decode`."""
        return self.decoder.decode(encoded, length, rules)

    def answer(self, request: Request, user: FeatureColumns, items: FeatureColumns, length: int) -> list[Id]:
        """Ids of the list for one request with its features, under the standing constraints: encode, decode."""
        rules = standing_rules(self.schema, request, items, length, self.trust_region)
        decoded = self.decode(self.encoder.encode(request, user, items), length, rules)
        return [request.candidate_ids[c] for c in decoded.order]


def standing_rules(
    schema: DataSchema, request: Request, items: FeatureColumns, length: int, trust_region: int | None
) -> Rules | None:
    """The rules of a list of `length` (or as many as there are candidates) that asks for nothing by itself."""
    ids = request.candidate_ids
    columns, length = candidate_columns(schema, request, items), min(length, len(ids))
    return settle(schema.constraints, None, ids, columns, length, trust_region=trust_region).rules


def load_bundle(path: Path) -> Bundle:
    """Verify and open a bundle folder; raises BundleError when a file changed, is missing, or the warm-up answers differ."""
    manifest = read_manifest(path)
    check_files(path, manifest)
    encoder = load_encoder(path / ENCODER)
    # Of the file, not of the encoder read from it: fields that newer schemas add must not change an older bundle's hash.
    if file_digest(path / ENCODER) != manifest.encoder_sha256:
        raise BundleError(f"{path}: the encoder is not the one the generator was trained with")
    check_schema(path, manifest, encoder.schema)
    sha256 = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    steps = (path / ENCODE_ONNX, path / STEP_ONNX) if manifest.format_version >= 3 else ()
    bundle = Bundle(path, manifest, sha256, encoder, open_decoder(path / ONNX, *steps))
    verify_answers(bundle)
    return bundle


def check_schema(path: Path, manifest: Manifest, schema: DataSchema) -> None:
    """Raise BundleError where the manifest says otherwise than the schema the encoder was fitted for."""
    for name, said, right in (
        ("dataset", manifest.dataset, schema.name),
        ("list_length", manifest.list_length, schema.list_length),
        ("max_candidates", manifest.max_candidates, schema.max_candidates),
    ):
        if said != right:
            raise BundleError(f"{path / MANIFEST}: {name} is {said}, but {right} in the schema of {ENCODER}")


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
