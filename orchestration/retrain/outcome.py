"""What became of a night, as it is returned, printed and kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestration.retrain.gates import Gate

Status = Literal["done", "nothing_new", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """`done`: there is a candidate that passed every gate (and serves, where `activated`). `stopped`: a gate did not hold, the
    last one of `gates`; all that was made is kept. `nothing_new`: nothing was done, and `reason` says how the night that
    took these inputs ended. `steps`: seconds of each; `history`: how much was learnt from.
    """

    status: Status
    reason: str
    id: str | None = None
    gates: tuple[Gate, ...] = ()
    bundle: Path | None = None
    champion: str | None = None
    activated: bool = False
    training_rows: str | None = None
    history: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    ended: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "bundle": None if self.bundle is None else str(self.bundle)}


def outcome_from(raw: dict[str, Any]) -> Outcome:
    """What `to_json` gave."""
    gates = tuple(Gate(**gate) for gate in raw["gates"])
    return Outcome(**{**raw, "gates": gates, "bundle": None if raw["bundle"] is None else Path(raw["bundle"])})
