"""The steps of a night as they pass: each is named, keyed by what goes into it, and not done again when that is unchanged.

A step's record is written after its outputs are in place, so that a process may die at any moment: what has no record is
done again, and the artefacts' own marks (`degre_prod.artefact`) spare what was finished.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from degre_prod.artefact import digest, write_json
from orchestration.retrain.gates import Gate

FORMAT = 1
Result = Mapping[str, Any]


class GateNotPassedError(Exception):
    """A gate does not hold: the night ends here, all that was made is kept."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        super().__init__(f"gate {gate.name}: {gate.reason}")


@dataclass(frozen=True)
class Entry:
    """One step of the timeline. `kept`: it had been done before; then `started` and `seconds` are those of that time."""

    step: str
    started: str
    seconds: float
    kept: bool


@dataclass
class Journal:
    """Steps of the night in `folder`. `say` is told what passes, for people."""

    folder: Path
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)
    entries: list[Entry] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    decisions: dict[str, list[str]] = field(default_factory=dict)

    def step(self, name: str, inputs: Any, outputs: Sequence[Path], do: Callable[[], Result | None]) -> dict[str, Any]:
        """Do a step and keep its result, or give back the result it had when `inputs` (JSON values) are what they were and
        every one of `outputs` is there."""
        key = digest("step", FORMAT, name, inputs)
        file = self.folder / "steps" / f"{name}.json"
        record = _read(file)
        kept = record is not None and record["key"] == key and all(path.exists() for path in outputs)
        if record is None or not kept:
            self.say(f"▸ {name}")
            started, clock = datetime.now(UTC).isoformat(timespec="milliseconds"), time.perf_counter()
            result = dict(do() or {})
            seconds = round(time.perf_counter() - clock, 3)
            made = [str(path.relative_to(self.folder)) for path in outputs]
            record = {
                "key": key,
                "inputs": inputs,
                "outputs": made,
                "started": started,
                "seconds": seconds,
                "result": result,
            }
            write_json(file, record)
            self.say(f"  {name}: {seconds:.1f} s")
        else:
            self.say(f"▸ {name}: done before")
        self.note(Entry(name, record["started"], record["seconds"], kept))
        return dict(record["result"])

    def gate(self, name: str, inputs: Any, look: Callable[[], Sequence[Gate]]) -> list[Gate]:
        """Do a step that looks at gates; raises GateNotPassedError at the first that does not hold."""
        found = self.step(name, inputs, [], lambda: {"gates": [asdict(gate) for gate in look()]})
        gates = [Gate(**raw) for raw in found["gates"]]
        self.gates += gates
        for gate in gates:
            self.say(f"  gate {gate.name} {'holds' if gate.passed else 'DOES NOT HOLD'}: {gate.reason}")
        for gate in gates:
            if not gate.passed:
                raise GateNotPassedError(gate)
        return gates

    def tell(self, name: str, reasons: Sequence[str]) -> None:
        """Say what was decided, and keep it for the report."""
        self.decisions[name] = list(reasons)
        for reason in reasons:
            self.say(f"  {reason}")

    def note(self, entry: Entry) -> None:
        """Put a step into the timeline."""
        self.entries.append(entry)
        write_json(self.folder / "timeline.json", [asdict(e) for e in self.entries])

    def results(self, step: str) -> dict[str, Any]:
        """The result of a step that was done; nothing when it was not."""
        record = _read(self.folder / "steps" / f"{step}.json")
        return dict(record["result"]) if record and any(entry.step == step for entry in self.entries) else {}

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by step; a step that had been done before counts with the time it took then."""
        return {entry.step: entry.seconds for entry in self.entries}


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return None
