"""The lease: of all controllers that run, the one that holds it acts. It expires soon after its holder is gone.

The lease alone proves nothing at the moment of writing: every write checks it in the transaction of the write, together
with the plan's version, so that a controller which was asleep for a minute cannot act on what it knew.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field

import redis

from serving.plan_store import LEASE_KEY, whoami

LEASE_MS = 3000

_RENEW = (
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end"
)
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"


def _token() -> str:
    return f"{whoami()}/{os.getpid()}/{uuid.uuid4().hex}"


@dataclass(frozen=True)
class Lease:
    """One controller's claim; `token` names it to people, too."""

    client: redis.Redis
    token: str = field(default_factory=_token)

    def hold(self) -> bool:
        """Take the lease or keep it for another LEASE_MS; False while someone else has it. Raises redis errors."""
        if self.client.eval(_RENEW, 1, LEASE_KEY, self.token, str(LEASE_MS)):
            return True
        return bool(self.client.set(LEASE_KEY, self.token, nx=True, px=LEASE_MS))

    def release(self) -> None:
        """Give it back, if it is ours."""
        self.client.eval(_RELEASE, 1, LEASE_KEY, self.token)
