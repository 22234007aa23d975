"""What a run folder remembers of its nights, in files, so that Ray, Redis or a process may die at any moment.

RUN/retrain/
  lock              who is at work
  current.json      the night under way: its inputs, frozen when it began
  outcomes.json     every night that ended, oldest first
  champion.json     the bundle that serves, as far as `degre retrain` brought it there
  digests.json      hashes of input files by size and time, so that they are read once
  0001-1a2b3c4d/    a night: number and hash of what it is made from
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from degre_prod.artefact import write_json
from degre_prod.errors import DataError
from orchestration.retrain.outcome import Outcome, outcome_from

KEEPS_KEY = "key"
BUNDLE = "bundle"  # in a night's folder


@dataclass(frozen=True)
class Frozen:
    """A night's inputs as they were when it began. `key`: hash of data, settings and gates, by which a second start knows
    that there is nothing new. `new`: the partitions that the champion was not trained on."""

    id: str
    key: str
    began_us: int
    partitions: dict[str, str]
    new: tuple[str, ...]
    cold: bool
    champion_bundle: str | None
    champion_sha256: str | None


@dataclass(frozen=True)
class State:
    """The folder RUN/retrain."""

    folder: Path

    @property
    def lock(self) -> Path:
        """See `lock.alone`."""
        return self.folder / "lock"

    @property
    def digests(self) -> Path:
        """See `inputs.partitions`."""
        return self.folder / "digests.json"

    def current(self) -> Frozen | None:
        """The night that began and has not ended."""
        raw = _read(self.folder / "current.json")
        return None if raw is None else Frozen(**{**raw, "new": tuple(raw["new"])})

    def begin(self, night: Frozen) -> None:
        """Remember that a night is under way."""
        (self.folder / night.id).mkdir(parents=True, exist_ok=True)
        write_json(self.folder / night.id / "inputs.json", asdict(night))
        write_json(self.folder / "current.json", asdict(night))

    def abandon(self) -> None:
        """Forget the night under way; what it made stays and is used again by a night of the same inputs."""
        (self.folder / "current.json").unlink(missing_ok=True)

    def end(self, night: Frozen, outcome: Outcome) -> None:
        """Remember how it ended; the same night again (activated later) replaces its entry."""
        known = [o for o in self._outcomes() if o[KEEPS_KEY] != night.key]
        write_json(self.folder / "outcomes.json", [*known, {KEEPS_KEY: night.key, **outcome.to_json()}])
        self.abandon()

    def outcomes(self) -> list[Outcome]:
        """Every night that ended, oldest first."""
        return [self._outcome(raw) for raw in self._outcomes()]

    def outcome_of(self, key: str) -> Outcome | None:
        """How the night of exactly these inputs ended."""
        return next((self._outcome(raw) for raw in self._outcomes() if raw[KEEPS_KEY] == key), None)

    def night_id(self, made_from: str) -> str:
        """The id of the night made from these inputs: the one it has already, else the next number."""
        nights = sorted(p.name for p in self.folder.glob("[0-9]*-" + "[0-9a-f]" * 8) if p.is_dir())
        known = [n for n in nights if n.endswith(f"-{made_from[:8]}")]
        last = max((int(n.partition("-")[0]) for n in nights), default=0)
        return known[-1] if known else f"{last + 1:04d}-{made_from[:8]}"

    def inputs_of(self, id_: str) -> Frozen | None:
        """The inputs a night began with."""
        raw = _read(self.folder / id_ / "inputs.json")
        return None if raw is None else Frozen(**{**raw, "new": tuple(raw["new"])})

    def champion(self) -> tuple[Path, str] | None:
        """Bundle and manifest hash of the champion that was activated last."""
        raw = _read(self.folder / "champion.json")
        return None if raw is None else (self.found(raw["bundle"]), raw["manifest_sha256"])

    def crown(self, bundle: Path, manifest_sha256: str) -> None:
        """Remember the champion."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(
            self.folder / "champion.json",
            {"bundle": self.stored(bundle), "manifest_sha256": manifest_sha256, "since": since},
        )

    def stored(self, path: Path) -> str:
        """A path for a file of this folder: from here when it lies within, so that a run folder can be moved."""
        path, here = path.resolve(), self.folder.resolve()
        return str(path.relative_to(here) if path.is_relative_to(here) else path)

    def found(self, stored: str) -> Path:
        """The path that was `stored`."""
        return self.folder.resolve() / stored

    def _outcomes(self) -> list[dict[str, Any]]:
        return list(_read(self.folder / "outcomes.json") or [])

    def _outcome(self, raw: dict[str, Any]) -> Outcome:
        found = outcome_from({name: value for name, value in raw.items() if name != KEEPS_KEY})
        return found if found.bundle is None else replace(found, bundle=self.folder / str(found.id) / BUNDLE)


def _read(file: Path) -> Any:
    """A JSON file, None when there is none."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}; remove it to begin anew", file=str(file)) from None
