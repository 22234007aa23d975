"""The HTTP application: `/v1/rerank`, `/v1/feedback`, `/healthz`, `/readyz`, `/metrics`, and beside them the console.

The same application runs inside Ray Serve (serving.deploy) and under plain uvicorn. Bodies are parsed by pydantic
straight from their bytes; FastAPI only routes and documents.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from degre_prod import __version__
from degre_prod.config import Settings
from serving.auth import TokenCheck
from serving.body import parse, read_body
from serving.console.routes import Console
from serving.problems import MEDIA_TYPE, PROXY_STATUSES, RETRY_STATUSES, Problem, unavailable
from serving.protocol import FeedbackAccepted, FeedbackRequest, ProblemDocument, RerankRequest, RerankResponse
from serving.rollout import Load
from serving.service import EngineFactory, Service

log = structlog.get_logger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


def create_app(engine_factory: EngineFactory, settings: Settings, load: Load | None = None) -> FastAPI:
    """The application. The engine is loaded in the background when the application starts; `/readyz` tells when it is.

    With `load`, which makes engines of bundles, it follows the rollout plan in Redis. `app.state.service` is the Service.
    Raises ConfigurationError when `settings.redis.url` is missing.
    """
    service = Service(engine_factory, settings, load)
    tokens, console = TokenCheck(settings.serving.tokens), Console(settings)
    limit = settings.serving.max_body_bytes

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.close()
            console.close()

    # The interactive pages load scripts from elsewhere; /openapi.json is enough.
    app = FastAPI(title="DeGRe reranking", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service

    async def rerank(http: Request) -> Response:
        """Choose and order the items a user sees. Always answers with a valid list; `degraded` says what is missing."""
        started = time.perf_counter()
        tokens.require(http.headers.get("authorization"))
        service.engine()
        with service.arrived():
            body = await read_body(http, limit)
            with service.admitted():
                received = parse(RerankRequest, body)
                response = await service.rerank(received, started)
                return _json(response.model_dump_json(exclude_none=True))

    async def feedback(http: Request) -> Response:
        """What the user did with a list. 202 only once Redis has it; on 503 send it again with the same event ids."""
        tokens.require(http.headers.get("authorization"))
        with service.arrived():
            body = await read_body(http, limit)
            with service.admitted():
                received = parse(FeedbackRequest, body)
                return _json((await service.feedback(received)).model_dump_json(), 202)

    async def healthz(_: Request) -> Response:
        """200 while the process is alive and well, 503 when it should be replaced."""
        if not service.healthy():
            return _problem(unavailable("too many threads are lost to work that never ended"))
        return _json('{"status":"alive"}')

    async def readyz(_: Request) -> Response:
        """200 once the bundle is verified and warm; says which one it is, and which one was refused."""
        reason = service.readiness()
        if reason is not None:
            return _problem(unavailable(reason))
        return _json(json.dumps(service.status()))

    async def metrics(_: Request) -> Response:
        """Prometheus metrics of this replica."""
        return Response(service.exposition(), media_type="text/plain; version=0.0.4")

    _route(app, "POST", "/v1/rerank", _counted("rerank", rerank, service), RerankRequest, 200, RerankResponse)
    _route(app, "POST", "/v1/feedback", _counted("feedback", feedback, service), FeedbackRequest, 202, FeedbackAccepted)
    _route(app, "GET", "/healthz", healthz)
    _route(app, "GET", "/readyz", readyz)
    _route(app, "GET", "/metrics", metrics)
    console.add_to(app)

    @app.exception_handler(HTTPException)
    async def not_found(_: Request, error: HTTPException) -> Response:
        return _problem(Problem(error.status_code, str(error.detail), headers=dict(error.headers or {})))

    # FastAPI's own documented way to extend the schema.
    app.openapi = lambda: _openapi(app, service, settings)  # type: ignore[method-assign]
    return app


def _counted(endpoint: str, handler: Handler, service: Service) -> Handler:
    """Turns problems into their documents, anything unforeseen into a plain 500, and counts the status."""

    async def handle(http: Request) -> Response:
        span = nullcontext() if service.traces is None else service.traces.answering(endpoint, http.headers)
        with span as traced:
            try:
                response = await handler(http)
            except Problem as problem:
                response = _problem(problem)
            except Exception:  # a bug of ours: the client learns no inside, the log everything
                log.exception("unforeseen", endpoint=endpoint)
                response = _problem(Problem(500, "an error of the service; it has been logged"))
            if traced is not None:
                traced.set_attribute("http.response.status_code", response.status_code)
        service.metrics.request(endpoint, response.status_code)
        return response

    handle.__doc__ = handler.__doc__
    return handle


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="application/json")


def _problem(problem: Problem) -> Response:
    return Response(problem.body(), problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def _route(
    app: FastAPI,
    method: str,
    path: str,
    handler: Handler,
    takes: type[Any] | None = None,
    status: int = 200,
    gives: type[Any] | None = None,
) -> None:
    statuses: tuple[int, ...] = (503,) if path in ("/healthz", "/readyz") else ()
    if takes:
        statuses = (400, 401, 408, 413, 422, 429, 500, *PROXY_STATUSES)
    body = {"required": True, "content": {"application/json": {"schema": _ref(takes)}}}
    app.add_api_route(
        path,
        handler,
        methods=[method],
        name=path.rsplit("/", 1)[-1],
        status_code=status,
        response_class=Response,
        responses={
            status: {"content": {"application/json": {"schema": _ref(gives)}}} if gives else {},
            **{code: _problem_response(code) for code in statuses},
        },
        openapi_extra={"requestBody": body} if takes else {},
    )


def _problem_response(status: int) -> dict[str, Any]:
    """OpenAPI of one error status."""
    response: dict[str, Any] = {"content": {MEDIA_TYPE: {"schema": _ref(ProblemDocument)}}}
    if status in RETRY_STATUSES:
        about = {"description": "seconds", "required": True, "schema": {"type": "integer"}}
        response["headers"] = {"Retry-After": about}
    return response


def _ref(model: type[Any] | None) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"} if model else {}


def _openapi(app: FastAPI, service: Service, settings: Settings) -> dict[str, Any]:
    """OpenAPI document, with the loaded bundle's limits stated."""
    models: list[Any] = [RerankRequest, RerankResponse, FeedbackRequest, FeedbackAccepted, ProblemDocument]
    _, schemas = models_json_schema([(m, "validation") for m in models], ref_template="#/components/schemas/{model}")
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
    most = "the bundle's maximum, known once it is loaded"
    if service.readiness() is None:
        most = f"the bundle's maximum of {service.engine().bundle.schema.max_candidates}"
    body = f"a body larger than {settings.serving.max_body_bytes} bytes"
    told = {"/v1/rerank": f"More candidates than {most}, or {body}", "/v1/feedback": body.capitalize()}
    for path, text in told.items():
        document["paths"][path]["post"]["responses"]["413"]["description"] = text
    if settings.serving.tokens:
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        for path in told:
            document["paths"][path]["post"]["security"] = [{"bearer": []}]
    return document
