"""Traces from the client to the stages, on and off; a replica's own port for its metrics; log lines with the request's id."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
import redis
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from serving_fakes import fake_engine
from serving_server import HttpServer, poll

from degre_prod.config import ServingConfig
from serving.client import RerankClient
from serving.protocol import Candidate, RerankRequest
from serving.reports import read_reports
from serving.tracing import open_traces, ray_serve_variables

REQUEST = RerankRequest(
    user_id=1, candidates=[Candidate(id=i, scores={"upstream": 0.0, "second": 0.0}) for i in (1, 2, 3)]
)


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OpenTelemetry collector: its endpoint, and the spans that it was sent."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", spans
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_trace_goes_from_the_client_to_the_stages(http_server: HttpServer, clean_redis: str) -> None:
    with collector() as (endpoint, spans):
        traces = open_traces(ServingConfig(traces_endpoint=endpoint))
        assert traces is not None
        with (
            http_server(fake_engine(), clean_redis, traces_endpoint=endpoint) as url,
            RerankClient(url, traces=traces) as client,
        ):
            answer = client.rerank(REQUEST)
        traces.close()
        by_name = {span.name: span for span in spans}
    assert {"/v1/rerank", "rerank", "parse", "features", "encode", "decode"} <= set(by_name)
    asked, served = by_name["/v1/rerank"], by_name["rerank"]
    assert len({span.trace_id for span in spans}) == 1
    assert served.parent_span_id == asked.span_id
    stages = [span for span in spans if span.name not in ("/v1/rerank", "rerank")]
    assert {span.parent_span_id for span in stages} == {served.span_id}
    assert "total" not in by_name
    for span in stages:
        assert asked.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= asked.end_time_unix_nano
    told = attributes(served)
    assert (told["degre.request_id"], told["degre.source"]) == (answer.request_id, "generator")
    assert told["http.response.status_code"] == 200


def test_a_caller_that_does_not_sample_is_not_traced(http_server: HttpServer, clean_redis: str) -> None:
    headers = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-00"}
    with collector() as (endpoint, spans):
        with http_server(fake_engine(), clean_redis, traces_endpoint=endpoint) as url:
            body = REQUEST.model_dump_json()
            assert httpx.post(f"{url}/v1/rerank", content=body, headers=headers).status_code == 200
        assert spans == []


def test_a_collector_that_is_away_costs_no_request_anything(http_server: HttpServer, clean_redis: str) -> None:
    nobody = "http://127.0.0.1:9/v1/traces"
    with http_server(fake_engine(), clean_redis, traces_endpoint=nobody) as url, RerankClient(url) as client:
        assert client.rerank(REQUEST).source == "generator"


def test_without_an_endpoint_there_are_no_traces(http_server: HttpServer, clean_redis: str) -> None:
    assert open_traces(ServingConfig()) is None
    assert ray_serve_variables(ServingConfig()) == {}
    with collector() as (_, spans):
        with http_server(fake_engine(), clean_redis) as url, RerankClient(url) as client:
            assert client.rerank(REQUEST).source == "generator"
        assert spans == []


def test_ray_serves_own_tracing_goes_to_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private.tracing_utils import _load_span_processors

    variables = ray_serve_variables(ServingConfig(traces_endpoint="http://127.0.0.1:9/v1/traces", traces_share=0.25))
    assert variables["RAY_SERVE_TRACING_SAMPLING_RATIO"] == "0.25"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (processor,) = _load_span_processors(variables["RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"], "file")
    processor.shutdown()


def test_every_replica_shows_its_metrics_on_a_port_of_its_own(http_server: HttpServer, clean_redis: str) -> None:
    def load(_: object) -> Any:
        raise AssertionError("there is no plan")

    with http_server(fake_engine(), clean_redis, load=load, metrics_host="127.0.0.1") as url:
        with redis.Redis.from_url(clean_redis) as client:
            poll(lambda: read_reports(client))
            (report,) = read_reports(client)
        assert report.metrics is not None
        with RerankClient(url) as client:
            client.rerank(REQUEST)
        text = httpx.get(f"http://{report.metrics}/metrics").text
        assert 'degre_rerank_total{arm="champion",source="generator",status="200"} 1.0' in text
        assert 'degre_queue{queue="engine"} 0.0' in text


def test_without_a_host_only_the_service_shows_them(http_server: HttpServer, clean_redis: str) -> None:
    def load(_: object) -> Any:
        raise AssertionError("there is no plan")

    with http_server(fake_engine(), clean_redis, load=load) as url:
        with redis.Redis.from_url(clean_redis) as client:
            poll(lambda: read_reports(client))
            assert read_reports(client)[0].metrics is None
        assert "degre_rerank" in httpx.get(f"{url}/metrics").text


def test_log_lines_carry_the_ids(http_server: HttpServer, clean_redis: str) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("nobody foresaw this")

    engine, lines = fake_engine(), structlog.testing.LogCapture()
    engine.deadline = broken  # type: ignore[method-assign]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, lines])
    try:
        with collector() as (endpoint, spans), http_server(engine, clean_redis, traces_endpoint=endpoint) as url:
            body = REQUEST.model_copy(update={"request_id": "r-17"}).model_dump_json()
            assert httpx.post(f"{url}/v1/rerank", content=body).status_code == 500
    finally:
        structlog.reset_defaults()
    (line,) = [entry for entry in lines.entries if entry["event"] == "unforeseen"]
    assert line["request_id"] == "r-17"
    (span,) = spans
    assert (line["trace_id"], attributes(span)["http.response.status_code"]) == (span.trace_id.hex(), 500)
