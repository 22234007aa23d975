"""The console's routes: pages, their static files, the state that they ask for every two seconds, and the one thing that
may be done here, ending an experiment. None of them is part of the API: they are not in its OpenAPI document.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import parse_qs

import structlog
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, StringConstraints

from degre_prod import __version__
from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError, MismatchError
from serving.body import parse, read_body
from serving.console.origin import HEADERS, is_https, require_own_name, require_same_site
from serving.console.session import SESSION_S, WRONG_S, Guesses, Session, Sessions, form_token, form_token_right
from serving.console.state import console_state, without_redis
from serving.moves import abort
from serving.plan import PlanError
from serving.plan_store import Author
from serving.problems import MEDIA_TYPE, Problem, unavailable
from serving.redis_client import RedisFailure, request_path_client

log = structlog.get_logger(__name__)

REDIS_MS = 1000.0
FRESH_S = 1.0  # however many people look, a replica reads Redis once a second for them
FORM_BYTES = 8192
SESSION, VISIT = "degre_console", "degre_console_visit"  # cookies: a session, and what a form before it is checked by
CLOSED_KEY = "degre:console:closed:"  # and a session's name, until it would have expired
STATIC = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "charts.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}

Handler = Callable[[Request], Awaitable[Response]]
Told = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class AbortRequest(BaseModel):
    """What the dialog sends. `name` is what the person calls themselves: a token says nothing of who holds it."""

    model_config = ConfigDict(extra="forbid")

    experiment: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]
    reason: Told


class Console:
    """Sessions, a connection to Redis, and the last state read from it; one an application."""

    def __init__(self, settings: Settings) -> None:
        if settings.redis.url is None:
            raise ConfigurationError("redis.url: the console needs one")
        self._sessions, self._guesses = Sessions(settings.serving.tokens), Guesses()
        self._client = request_path_client(settings.redis.url.get_secret_value(), REDIS_MS)
        self._reading = asyncio.Lock()
        self._state: dict[str, Any] = {}
        self._read_at = -FRESH_S

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        for method, path, handler in (
            ("GET", "/console", self._page),
            ("GET", "/console/login", self._login_page),
            ("POST", "/console/login", self._login),
            ("POST", "/console/logout", self._logout),
            ("GET", "/console/state", self._state_now),
            ("POST", "/console/abort", self._abort),
            ("GET", "/console/static/{name}", self._static),
        ):
            app.router.add_route(path, self._guarded(handler), methods=[method], include_in_schema=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _guarded(self, handler: Handler) -> Handler:
        """Problems become their documents, every answer carries HEADERS."""

        async def handle(http: Request) -> Response:
            try:
                if not self._sessions.needed:
                    require_own_name(http)
                if http.method == "POST":
                    require_same_site(http)
                response = await handler(http)
            except Problem as problem:
                response = Response(problem.body(), problem.status, problem.headers, MEDIA_TYPE)
            except Exception:  # a bug of ours: the log learns of it, the browser does not
                log.exception("unforeseen", endpoint="console")
                response = Response(Problem(500, "an error of the console; it has been logged").body(), 500)
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return handle

    async def _page(self, http: Request) -> Response:
        session = await self._session(http)
        if session is None and self._sessions.needed:
            return _to("/console/login")
        visit = http.cookies.get(VISIT) or secrets.token_urlsafe(16)
        token = form_token(session.value if session else visit)
        page = _template("page.html.j2").render(token=token, login=self._sessions.needed, version=__version__)
        response = Response(page, media_type="text/html")
        if session is None:
            self._remember(http, response, VISIT, visit)
        return response

    async def _login_page(self, http: Request) -> Response:
        if not self._sessions.needed or await self._session(http) is not None:
            return _to("/console")
        return self._login_form(http)

    def _login_form(self, http: Request, told: str = "", status: int = 200) -> Response:
        visit = http.cookies.get(VISIT) or secrets.token_urlsafe(16)
        page = _template("login.html.j2").render(token=form_token(visit), told=told, version=__version__)
        response = Response(page, status, media_type="text/html")
        self._remember(http, response, VISIT, visit)
        return response

    async def _login(self, http: Request) -> Response:
        form = parse_qs((await read_body(http, FORM_BYTES)).decode("utf-8", "replace"))
        if not self._sessions.needed:
            return _to("/console")
        if not form_token_right(http.cookies.get(VISIT), form.get("form_token", [""])[0]):
            return self._login_form(http, "The form was too old. Please try again.", 403)
        if wait_s := self._guesses.wait_s():
            response = self._login_form(http, f"Too many wrong tokens. Please try again in {wait_s:.0f} seconds.", 429)
            response.headers["Retry-After"] = f"{wait_s:.0f}"
            return response
        session = await asyncio.to_thread(self._sessions.open, form.get("token", [""])[0])
        if session is None:
            self._guesses.wrong()
            log.warning("wrong token for the console")
            await asyncio.sleep(WRONG_S)
            return self._login_form(http, "That is none of the configured tokens.", 401)
        response = _to("/console")
        self._remember(http, response, SESSION, session.value, SESSION_S)
        response.delete_cookie(VISIT, path="/console")
        return response

    async def _logout(self, http: Request) -> Response:
        session = await self._session(http)
        form = parse_qs((await read_body(http, FORM_BYTES)).decode("utf-8", "replace"))
        response = _to("/console/login")
        if session is not None:
            self._require_form_token(session.value, form.get("form_token", [""])[0])
            left_s = max(session.expires - int(time.time()), 1)
            try:
                await asyncio.to_thread(self._client.set, CLOSED_KEY + session.name, 1, ex=left_s)
            except RedisFailure as error:  # the cookie goes; a copy of it would hold until it expires
                log.warning("a closed session could not be noted", error=type(error).__name__)
            response.delete_cookie(SESSION, path="/console")
        return response

    async def _state_now(self, http: Request) -> Response:
        await self._require_session(http)
        state = await self._fresh_state()
        known, after = http.query_params.get("experiment"), http.query_params.get("after", "")
        if state["experiment"] and known == state["experiment"]["id"]:
            since = float(after) if after.replace(".", "", 1).isdecimal() else 0.0
            state = state | {"points": [p for p in state["points"] if p[0] > since]}
        return Response(json.dumps(state, allow_nan=False), media_type="application/json")

    async def _abort(self, http: Request) -> Response:
        session = await self._require_session(http)
        cookie = session.value if session else http.cookies.get(VISIT)
        self._require_form_token(cookie, http.headers.get("x-form-token"))
        asked = parse(AbortRequest, await read_body(http, FORM_BYTES))
        author = Author(why=asked.reason, by=f"{asked.name} (console)")
        try:
            plan = await asyncio.to_thread(abort, self._client, author, asked.experiment)
        except MismatchError as error:
            raise Problem(409, str(error)) from None
        except (PlanError, *RedisFailure) as error:
            log.warning("abort from the console failed", error=repr(error))
            detail = "Redis did not confirm the abort; the history tells whether it was taken. `degre rollout abort` does the same"
            raise unavailable(detail) from None
        self._read_at = -FRESH_S
        log.info("aborted from the console", experiment=asked.experiment, version=plan.version)
        return Response(json.dumps({"version": plan.version}), media_type="application/json")

    async def _static(self, http: Request) -> Response:
        name = http.path_params["name"]
        if name not in STATIC:
            raise Problem(404, f"there is no {name[:100]}")
        return Response(_file(name), media_type=STATIC[name], headers={"Cache-Control": "no-cache"})

    async def _fresh_state(self) -> dict[str, Any]:
        async with self._reading:
            if time.monotonic() - self._read_at >= FRESH_S:
                try:
                    self._state = await asyncio.to_thread(console_state, self._client)
                except RedisFailure as error:
                    self._state = without_redis(f"Redis does not answer ({type(error).__name__})")
                except PlanError as error:
                    self._state = without_redis(str(error))
                self._read_at = time.monotonic()
            return self._state

    async def _session(self, http: Request) -> Session | None:
        """The open session of a request's cookie."""
        if not self._sessions.needed:
            return None
        session = await asyncio.to_thread(self._sessions.check, http.cookies.get(SESSION))
        if session is None:
            return None
        try:
            closed = await asyncio.to_thread(self._client.exists, CLOSED_KEY + session.name)
        except RedisFailure:  # then there is nothing to see or to do either, but that Redis is away
            closed = 0
        return None if closed else session

    async def _require_session(self, http: Request) -> Session | None:
        """None where no session is needed; raises a 401 Problem without one."""
        session = await self._session(http)
        if session is None and self._sessions.needed:
            raise Problem(401, "the session is over; log in at /console/login")
        return session

    @staticmethod
    def _require_form_token(cookie: str | None, given: str | None) -> None:
        if not form_token_right(cookie, given):
            raise Problem(403, "the form's own token is missing or wrong; load the page again")

    @staticmethod
    def _remember(http: Request, response: Response, name: str, value: str, max_age: int | None = None) -> None:
        response.set_cookie(
            name, value, max_age=max_age, path="/console", httponly=True, samesite="strict", secure=is_https(http)
        )


def _to(path: str) -> Response:
    return Response(status_code=303, headers={"Location": path})


@cache
def _file(name: str) -> bytes:
    return (files("serving.console") / "static" / name).read_bytes()


@cache
def _template(name: str) -> Any:
    from jinja2 import Environment, StrictUndefined

    text = (files("serving.console") / name).read_text()
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(text)
