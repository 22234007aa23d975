"""Faults that nothing outside a replica brings about, built into the replicas of alert-drill.sh and asked for by a request's id.

drill-raise-…    an error of the service's own
drill-hang-…     work that does not end for HANG_S
drill-shadow-…   the challenger's model fails, in shadow
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from degre_prod.bundle import Bundle
from degre_prod.config import Settings
from serving.deadline import Deadline
from serving.engine import Answer, Engine
from serving.preparation import Prepared
from serving.protocol import RerankRequest
from serving.replica import build_engine

HANG_S = 90.0


class FaultyEngine(Engine):
    """An engine, and the faults."""

    def prepare(self, received: RerankRequest) -> Prepared:
        """See Engine.prepare."""
        if (received.request_id or "").startswith("drill-raise-"):
            raise RuntimeError("a fault of the drill's")
        return super().prepare(received)

    def answer(self, prepared: Prepared, deadline: Deadline | None = None, *, in_shadow: bool = False) -> Answer:
        """See Engine.answer."""
        asked = prepared.request.request_id
        if asked.startswith("drill-hang-"):
            time.sleep(HANG_S)
        if in_shadow and asked.startswith("drill-shadow-"):
            raise RuntimeError("a fault of the drill's")
        return super().answer(prepared, deadline, in_shadow=in_shadow)


def faulty_engine(bundle: Bundle, settings: Settings) -> Engine:
    """As `build_engine`."""
    engine = build_engine(bundle, settings)
    engine.__class__ = FaultyEngine
    return engine


def build(args: dict[str, Any]) -> Any:
    """As `serving.production:build`, with faulty engines."""
    from serving import production

    production.application = partial(production.application, build=faulty_engine)  # type: ignore[assignment]
    return production.build(args)
