"""The load generator, a process of its own: `python -m orchestration.bench.loadgen SPEC.json` prints a JSON document.

Raw sockets with keep-alive and one thread a connection: httpx and asyncio would cost as much as the service measured, and
asyncio's timers are a millisecond coarse. Closed loop: each connection asks again as soon as it has its answer. Open loop:
requests are due at moments drawn beforehand, and latency counts from that moment, however late a request could be sent.
"""

from __future__ import annotations

import gc
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import numpy as np

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Load:
    """`rate`: requests a second in open loop; None is closed loop. `bodies`: JSON texts, asked in turn; none: GET."""

    url: str
    bodies: tuple[str, ...]
    connections: int
    seconds: float
    rate: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """Latencies in milliseconds, in order of their end; answers by status and by `source`.

    `late_ms`: in open loop, how much later than due each request was sent, in the same order; empty in closed loop.
    """

    latencies_ms: np.ndarray
    late_ms: np.ndarray
    seconds: float
    statuses: dict[str, int]
    sources: dict[str, int]

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return len(self.latencies_ms) / self.seconds

    def quantile_ms(self, q: float) -> float:
        """Latency quantile."""
        return float(np.quantile(self.latencies_ms, q))


def measure(load: Load) -> Measured:
    """Run the load generator in a process of its own."""
    with TemporaryDirectory() as folder:
        spec = Path(folder) / "load.json"
        spec.write_text(json.dumps(asdict(load)))
        command = [sys.executable, "-m", "orchestration.bench.loadgen", str(spec)]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=load.seconds + 90).stdout
    answer = json.loads(said)
    latencies_ms, late_ms = np.array(answer["latencies_ms"]), np.array(answer["late_ms"])
    return Measured(latencies_ms, late_ms, answer["seconds"], answer["statuses"], answer["sources"])


class _Connection:
    """One keep-alive connection; answers with a Content-Length only."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body; raises OSError when the connection ends."""
        self._socket.sendall(request)
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._receive()
        head = self._buffer[:end].lower()
        at = head.find(b"\r\ncontent-length:")
        if at < 0:
            raise OSError("an answer without Content-Length")
        length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        total = end + 4 + length
        while len(self._buffer) < total:
            self._receive()
        body, self._buffer = self._buffer[end + 4 : total], self._buffer[total:]
        return int(head[9:12]), body

    def _receive(self) -> None:
        part = self._socket.recv(65536)
        if not part:
            raise OSError("the connection was closed")
        self._buffer += part


class _Run:
    """The threads of one measurement."""

    def __init__(self, load: Load) -> None:
        self._load = load
        parts = urlsplit(load.url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        head = f"{parts.path or '/'} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
        self._requests = [
            f"POST {head}Content-Type: application/json\r\nContent-Length: {len(b.encode())}\r\n\r\n{b}".encode()
            for b in load.bodies
        ] or [f"GET {head}\r\n".encode()]
        self._due: list[float] | None = None
        if load.rate is not None:
            rng, at, self._due = random.Random(load.seed), 0.0, []
            while (at := at + rng.expovariate(load.rate)) < load.seconds:
                self._due.append(at)
        self._lock = threading.Lock()
        self._next = 0
        self._latencies: list[float] = []
        self._late: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()

    def __call__(self) -> dict[str, object]:
        ready = threading.Barrier(self._load.connections + 1)
        threads = [threading.Thread(target=self._ask, args=(ready,)) for _ in range(self._load.connections)]
        for thread in threads:
            thread.start()
        self._started = time.perf_counter() + 0.05
        ready.wait()
        for thread in threads:
            thread.join()
        return {
            "latencies_ms": [round(ms, 4) for ms in self._latencies],
            "late_ms": [round(ms, 4) for ms in self._late],
            "seconds": time.perf_counter() - self._started,
            "statuses": self._statuses,
            "sources": self._sources,
        }

    def _ask(self, ready: threading.Barrier) -> None:
        connection: _Connection | None = None
        ready.wait()
        while (turn := self._turn()) is not None:
            index, due = turn
            wait = due - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            late_ms = (time.perf_counter() - due) * 1000
            try:
                connection = connection or _Connection(self._host, self._port)
                status, body = connection.ask(self._requests[index % len(self._requests)])
                source = _source(body)
            except OSError:
                connection, status, source = None, 0, ""
            took_ms = (time.perf_counter() - due) * 1000
            with self._lock:
                self._latencies.append(took_ms)
                if self._due is not None:
                    self._late.append(late_ms)
                self._statuses[str(status)] += 1
                if source:
                    self._sources[source] += 1

    def _turn(self) -> tuple[int, float] | None:
        """The next request's index and the moment it is due; None at the end."""
        with self._lock:
            index, self._next = self._next, self._next + 1
        if self._due is not None:
            return (index, self._started + self._due[index]) if index < len(self._due) else None
        now = max(time.perf_counter(), self._started)
        return (index, now) if now < self._started + self._load.seconds else None


def _source(body: bytes) -> str:
    at = body.find(b'"source":"')
    return body[at + 10 : body.find(b'"', at + 10)].decode() if at >= 0 else ""


def main() -> None:
    """Read the load from the file named, print what was measured."""
    gc.disable()  # nothing here is cyclic, and a collection would make requests late
    spec = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps(_Run(Load(**spec | {"bodies": tuple(spec["bodies"])}))()))


if __name__ == "__main__":
    main()
