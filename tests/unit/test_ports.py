"""Free ports lie where no outgoing connection can take them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from degre_prod.errors import ServiceError
from serving import ports
from serving.ports import free_port


def test_a_port_is_free_and_not_one_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = free_port()
    assert found < lowest
    with socket.socket() as server:
        server.bind(("127.0.0.1", found))


def test_ports_in_use_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        taken = free_port()
        server.bind(("127.0.0.1", taken))
        server.listen()
        monkeypatch.setattr(ports.random.SystemRandom, "sample", lambda *_: [taken, taken + 1])
        assert free_port() == taken + 1
        monkeypatch.setattr(ports.random.SystemRandom, "sample", lambda *_: [taken])
        with pytest.raises(ServiceError, match="no free port on"):
            free_port()
