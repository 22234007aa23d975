"""`mining.json` beside the shards: under which rules they were mined, for training and for the bundle to hold to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from degre_prod.artefact import write_text
from degre_prod.config import MiningConfig
from degre_prod.constraints.mask import feasible_requests
from degre_prod.constraints.rules import Rules, encoded_rules
from degre_prod.constraints.spec import StandingConstraints
from degre_prod.encoding.encoder import EncoderSpec
from degre_prod.encoding.store import EncodedSet
from degre_prod.errors import ConfigurationError

FILE = "mining.json"


class MiningRecord(BaseModel):
    """The rules, how many requests were mined, and how many had no list that obeys them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    constraints: StandingConstraints = StandingConstraints()
    trust_region: int | None = None
    mined: int = 0
    infeasible: int = 0

    @property
    def restricted(self) -> bool:
        """Whether lists had to obey more than distinctness."""
        return bool(self.constraints) or self.trust_region is not None


def read_record(mined: Path) -> MiningRecord:
    """The record of a mined artefact; the one of mining without rules when it has none."""
    file = mined / FILE
    return MiningRecord.model_validate_json(file.read_text()) if file.is_file() else MiningRecord()


def write_record(folder: Path, record: MiningRecord) -> None:
    """Leave the record beside the shards."""
    write_text(folder / FILE, record.model_dump_json())


def mining_rules(
    spec: EncoderSpec, encoded: EncodedSet, requests: np.ndarray, settings: MiningConfig
) -> tuple[np.ndarray, Rules | None]:
    """The requests that have a list obeying the schema's standing constraints and the trust region, and their rules, which
    are None where there are neither. Raises ConfigurationError for a trust region shorter than the list."""
    constraints, region = spec.data_schema.constraints, settings.trust_region
    if region is not None and region < spec.data_schema.list_length:
        raise ConfigurationError(
            f"mining.trust_region {region} leaves fewer candidates than the {spec.data_schema.list_length} slots of a list"
        )
    if not constraints and region is None:
        return requests, None
    kept = []
    for start in range(0, len(requests), settings.chunk_size):
        chunk = requests[start : start + settings.chunk_size]
        kept.append(chunk[feasible_requests(encoded_rules(constraints, spec, encoded, chunk, trust_region=region))])
    feasible = np.concatenate(kept) if kept else requests
    return feasible, encoded_rules(constraints, spec, encoded, feasible, trust_region=region)
