"""Free TCP ports for servers of ours."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from degre_prod.errors import ServiceError

_LOWEST = 20_000  # below it Ray's workers have theirs (10002–19999)
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ATTEMPTS = 200


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on, below those the kernel gives to outgoing connections.

    One of theirs could be taken between this call and the server's own bind: Ray opens hundreds while it starts.
    Raises ServiceError when none is found.
    """
    highest = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    ports = range(_LOWEST, highest) if highest > _LOWEST + 1000 else range(_LOWEST, 65_536)
    for port in random.SystemRandom().sample(ports, _ATTEMPTS):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise ServiceError(f"no free port on {host} between {ports.start} and {ports.stop}")
