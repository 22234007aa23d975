"""The engines a replica holds: the champion's, the challenger's while it is on trial, and the champion's before."""

from __future__ import annotations

import time
from dataclasses import dataclass

from degre_prod.experiments.assignment import Allocation
from serving.engine import Engine
from serving.experiment import CHALLENGER, CHAMPION, ArmName, Experiment
from serving.preparation import Exposure
from serving.protocol import MAX_DEADLINE_MS, RerankRequest

KEPT_S = MAX_DEADLINE_MS / 1000 + 5  # a displaced engine may still be answering


@dataclass(frozen=True, slots=True)
class Trial:
    """Two engines and the experiment that decides between them; exchanged as a whole."""

    champion: Engine
    challenger: Engine
    experiment: Experiment
    allocation: Allocation

    @property
    def in_shadow(self) -> bool:
        """Whether nobody is shown the challenger's lists."""
        return self.experiment.now.share == 0

    def choose(self, received: RerankRequest) -> tuple[Engine, ArmName, Exposure | None]:
        """Who answers the request, and what it counts in: None for testers, the held out and requests out of scope."""
        given = self.allocation.assign(received.user_id, received.context)
        exposure = Exposure(self.experiment.id, self.experiment.now.name) if given.counted else None
        if given.arm == CHALLENGER:
            return self.challenger, CHALLENGER, exposure
        return self.champion, CHAMPION, exposure


class Engines:
    """Reading `current` and `trial` needs no lock; one thread exchanges. `trial` is None with one arm."""

    def __init__(self) -> None:
        self.current: Engine | None = None
        self.trial: Trial | None = None
        self._previous: Engine | None = None
        self._displaced: list[tuple[float, Engine]] = []

    def held(self, manifest_sha256: str) -> Engine | None:
        """The engine of that bundle, if it is one of those held or not closed yet."""
        for engine in (*self._held(), *(engine for _, engine in self._displaced)):
            if engine.bundle.manifest_sha256 == manifest_sha256:
                return engine
        return None

    def serve(self, champion: Engine, trial: Trial | None = None) -> None:
        """Let these answer from the next request on."""
        before = self._held()
        if champion is not self.current:
            self._previous, self.current = self.current, champion
        self.trial = trial
        until, after = time.monotonic() + KEPT_S, self._held()
        self._displaced = [(at, e) for at, e in self._displaced if not _among(e, after)]
        self._displaced += [(until, e) for e in before if not _among(e, after)]

    def close_displaced(self) -> None:
        """Close what no request can be using any more."""
        now = time.monotonic()
        for _, engine in [d for d in self._displaced if d[0] <= now]:
            engine.close()
        self._displaced = [d for d in self._displaced if d[0] > now]

    def close(self) -> None:
        """Close all of them."""
        for engine in (*self._held(), *(engine for _, engine in self._displaced)):
            engine.close()

    def _held(self) -> list[Engine]:
        trial = self.trial
        found: list[Engine] = []
        for engine in (self.current, trial.challenger if trial else None, self._previous):
            if engine is not None and not _among(engine, found):
                found.append(engine)
        return found


def _among(engine: Engine, engines: list[Engine]) -> bool:
    return any(engine is other for other in engines)
