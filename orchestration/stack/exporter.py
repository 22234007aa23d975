"""A small HTTP server for Prometheus: `/metrics` with the figures of `figures`, `/targets` with every replica to scrape."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import CollectorRegistry, generate_latest

from orchestration.stack.figures import StackCollector
from serving.reports import read_reports

if TYPE_CHECKING:
    import redis

REDIS_S = 5.0


def exporter(host: str, port: int, run: Path, redis_url: str) -> ThreadingHTTPServer:
    """The server, bound; `serve_forever` runs it. 503 where Redis does not say which replicas there are, so that Prometheus
    keeps the ones it knows."""
    from redis import Redis, RedisError
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    client = Redis.from_url(
        redis_url, socket_timeout=REDIS_S, socket_connect_timeout=REDIS_S, retry=Retry(NoBackoff(), 0)
    )
    registry = CollectorRegistry()
    registry.register(StackCollector(run, client))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, "text/plain; version=0.0.4", generate_latest(registry))
            elif self.path == "/targets":
                try:
                    self._answer(200, "application/json", json.dumps(targets(client)).encode())
                except (RedisError, OSError) as error:
                    self._answer(503, "text/plain", f"Redis does not answer: {type(error).__name__}".encode())
            else:
                self._answer(404, "text/plain", b"/metrics or /targets")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A scrape is no event."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    return server


def targets(client: redis.Redis) -> list[dict[str, object]]:
    """Prometheus' HTTP service discovery: every replica that shows its metrics on a port of its own.

    Raises OutOfMemoryError while Redis is full: it takes no reports, and replicas that are well would seem gone.
    """
    from redis.exceptions import OutOfMemoryError

    memory = cast(dict[str, Any], client.info("memory"))
    if 0 < memory["maxmemory"] <= memory["used_memory"]:
        raise OutOfMemoryError("Redis is full")
    shown = [report for report in read_reports(client) if report.metrics is not None]
    return [{"targets": [report.metrics], "labels": {"replica": report.replica}} for report in shown]
