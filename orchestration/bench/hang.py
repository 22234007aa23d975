"""A model that stops answering on demand. Only benchmarks and tests build engines with it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from degre_prod.config import Settings
from serving.replica import build_engine

if TYPE_CHECKING:
    from degre_prod.bundle import Bundle, Decoded
    from degre_prod.constraints.rules import Rules
    from degre_prod.encoding.encoder import Encoded
    from serving.engine import Engine


class HangingBundle:
    """A bundle whose `decode` never returns when it is called while the file `flag` exists."""

    def __init__(self, bundle: Bundle, flag: Path) -> None:
        self.manifest_sha256, self.schema, self.encoder = bundle.manifest_sha256, bundle.schema, bundle.encoder
        self.follows_rules, self.trust_region = bundle.follows_rules, bundle.trust_region
        self._bundle, self._flag = bundle, flag

    def decode(self, encoded: Encoded, length: int, rules: Rules | None = None) -> Decoded:
        """See Bundle.decode."""
        if self._flag.exists():
            threading.Event().wait()
        return self._bundle.decode(encoded, length, rules)


def hanging_engine(bundle: Bundle, settings: Settings, *, flag: Path) -> Engine:
    """`build_engine` around a bundle that may hang."""
    return build_engine(HangingBundle(bundle, flag), settings)
