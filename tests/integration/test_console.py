"""The console over HTTP: who gets in, what it says, what it lets people do. The page itself: test_console_browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import redis
from console_trial import TOKEN, begin, console, form_token, log_in, look, users_come
from rollout_plans import A, B, report

from orchestration.redis_server import running_redis
from orchestration.rollout import accounts, lease
from orchestration.rollout.status import status
from serving import reports
from serving.console import routes
from serving.console.session import GUESSES, SESSION_S
from serving.plan_store import LEASE_KEY, PLAN_KEY, Author, publish_plan, read_history, read_plan
from serving.reports import write_report

LoggedIn = Callable[[str], httpx.Client]
NOBODY = "redis://127.0.0.1:1"  # no Redis there


@pytest.fixture
def client(clean_redis: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(accounts, "SETTLE_S", -1.0)
    monkeypatch.setattr(routes, "FRESH_S", 0.0)
    monkeypatch.setattr(reports, "ALIVE_MS", 60_000)  # what was said once by hand
    monkeypatch.setattr(lease, "LEASE_MS", 60_000)
    with redis.Redis.from_url(clean_redis) as made:
        yield made


@pytest.fixture
def logged_in() -> Iterator[LoggedIn]:
    """Opens sessions on services, and closes their connections in the end."""
    with ExitStack() as stack:

        def opened(base: str) -> httpx.Client:
            made = stack.enter_context(httpx.Client(base_url=base))
            assert log_in(made, TOKEN).status_code == 303
            return made

        yield opened


def abort(session: httpx.Client, token: str | None = None, **given: str) -> httpx.Response:
    if token is None:
        token = form_token(session.get("/console").text)
    body = {"experiment": "trial", "name": "bob", "reason": "complaints"} | given
    return session.post("/console/abort", json=body, headers={"X-Form-Token": token})


def test_a_token_opens_a_session_and_logging_out_ends_it(client: redis.Redis, clean_redis: str) -> None:
    with console(clean_redis) as base, httpx.Client(base_url=base) as visitor:
        begin(client)
        answer = visitor.get("/console")
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/login")
        refused = visitor.get("/console/state")
        assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
        answer = log_in(visitor, TOKEN)
        assert (answer.status_code, answer.headers["location"]) == (303, "/console")
        cookie = answer.headers["set-cookie"]
        for part in (f"Max-Age={SESSION_S}", "HttpOnly", "SameSite=strict", "Path=/console"):
            assert part in cookie
        assert "Secure" not in cookie
        page = visitor.get("/console")
        assert page.status_code == 200
        assert visitor.get("/console/login").status_code == 303
        state = visitor.get("/console/state")
        assert state.json()["experiment"]["id"] == "trial"
        for text in (page.text, state.text, cookie):
            assert TOKEN not in text
        assert clean_redis not in state.text
        kept = dict(visitor.cookies)
        assert visitor.post("/console/logout").status_code == 403
        assert visitor.get("/console/state").status_code == 200
        answer = visitor.post("/console/logout", data={"form_token": form_token(page.text)})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/login")
        assert visitor.get("/console/state").status_code == 401
        copied = httpx.get(f"{base}/console/state", cookies=kept)
        assert copied.status_code == 401  # a copy of the cookie is worth nothing


def test_behind_tls_the_cookie_is_secure(clean_redis: str) -> None:
    with console(clean_redis) as base, httpx.Client(base_url=base) as visitor:
        answer = log_in(visitor, TOKEN)
        again = visitor.get("/console/login", headers={"X-Forwarded-Proto": "https"})
        assert "Secure" not in answer.headers["set-cookie"]
        visitor.cookies.clear()
        again = visitor.get("/console/login", headers={"X-Forwarded-Proto": "https"})
        assert "Secure" in again.headers["set-cookie"]


def test_wrong_tokens_are_refused_and_guessing_stops(clean_redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "WRONG_S", 0.0)
    with console(clean_redis) as base, httpx.Client(base_url=base) as visitor:
        assert visitor.post("/console/login", data={"token": TOKEN}).status_code == 403  # without the form's own token
        for _ in range(GUESSES):
            answer = log_in(visitor, "wrong")
            assert answer.status_code == 401
            assert "none of the configured tokens" in answer.text
            assert routes.SESSION not in visitor.cookies
        late = log_in(visitor, TOKEN)
        assert late.status_code == 429
        assert 50 < int(late.headers["retry-after"]) <= 60
        assert routes.SESSION not in visitor.cookies
        api = visitor.post(
            "/v1/rerank", json={"user_id": 1, "candidates": [{"id": 1}]}, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        assert api.status_code == 200  # the API is not the console


def test_a_session_holds_on_every_replica_that_has_its_token(clean_redis: str, logged_in: LoggedIn) -> None:
    with (
        console(clean_redis, tokens=("other", TOKEN)) as first,
        console(clean_redis) as second,
        console(clean_redis, tokens=("new",)) as third,
    ):
        session = logged_in(first)
        assert session.get(f"{second}/console/state").status_code == 200
        assert session.get(f"{third}/console/state").status_code == 401


def test_an_abort_needs_session_form_token_and_our_own_page(
    client: redis.Redis, clean_redis: str, logged_in: LoggedIn
) -> None:
    with console(clean_redis) as base:
        plan = begin(client, 1)
        session = logged_in(base)
        right = form_token(session.get("/console").text)
        assert httpx.post(f"{base}/console/abort", json={}, headers={"X-Form-Token": right}).status_code == 401
        for token in ("", "0" * 64, form_token(httpx.get(f"{base}/console/login").text)):
            refused = abort(session, token)
            assert (refused.status_code, "form's own token" in refused.text) == (403, True)
        for header in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
            session.headers.update(header)
            refused = abort(session, right)
            assert (refused.status_code, "from elsewhere" in refused.text) == (403, True)
            for name in header:
                del session.headers[name]
        assert abort(session, right, reason="  ").status_code == 422
        assert abort(session, right, name="").status_code == 422
        assert abort(session, right, experiment="another").status_code == 409
        assert read_plan(client) == plan
        answer = abort(session, right)
        assert (answer.status_code, answer.json()) == (200, {"version": plan.version + 1})
        after = read_plan(client)
        assert after is not None
        assert after.change is not None
        assert (after.experiment, after.champion.manifest_sha256) == (None, A)
        assert (after.change.action, after.change.by, after.change.why) == ("abort", "bob (console)", "complaints")
        assert after.change.experiment == "trial"
        assert "no experiment is under way" in abort(session, right).json()["detail"]
        state = session.get("/console/state").json()
        assert (state["running"], state["ended"]["how"], state["ended"]["why"]) == (False, "aborted", "complaints")


def test_without_tokens_this_machine_alone_may_look_and_act(client: redis.Redis, clean_redis: str) -> None:
    with console(clean_redis, tokens=()) as base, httpx.Client(base_url=base) as visitor:
        begin(client)
        assert visitor.get("/console/login").status_code == 303
        page = visitor.get("/console")
        assert "no login" in page.text
        assert visitor.get("/console/state").json()["running"]
        for path in ("/console", "/console/state", "/console/static/console.js"):
            rebound = visitor.get(path, headers={"Host": "evil.example"})
            assert (rebound.status_code, "own names" in rebound.text) == (403, True)
        assert abort(visitor, "").status_code == 403
        with httpx.Client(base_url=base) as stranger:
            assert abort(stranger, form_token(page.text)).status_code == 403  # the token without its cookie
        assert abort(visitor).status_code == 200


def test_the_figures_are_those_of_status(client: redis.Redis, clean_redis: str, logged_in: LoggedIn) -> None:
    with console(clean_redis) as base:
        session = logged_in(base)
        empty = session.get("/console/state").json()
        assert (empty["plan"], empty["experiment"], empty["history"]) == (None, None, [])
        plan = begin(client, 1)
        before = session.get("/console/state").json()
        assert (before["look"], before["controller"], before["points"]) == (None, None, [])
        users_come(client, "half", range(60))
        look(client)
        state = session.get("/console/state").json()
        told = status(client)
        moving = ("at", "seconds")
        assert {k: v for k, v in state["look"].items() if k not in moving} == {
            k: v for k, v in told["experiment"].items() if k not in moving
        }
        assert (state["controller"], state["plan"]["version"]) == (told["controller"], plan.version)
        assert [a["weight"] for a in state["plan"]["arms"]] == [0.5, 0.5]
        assert state["look"]["users"] == {"champion": 30, "challenger": 30}
        assert [r["state"] for r in state["replicas"]] == ["as planned"]
        assert [c["action"] for c in state["history"]] == ["start", "activate"]
        ((at, stage, spans),) = state["points"]
        primary = told["experiment"]["results"]["arms"][0]["primary"]
        assert stage == "half"
        assert spans["primary"] == pytest.approx([primary[k] for k in ("effect", "low", "high")], rel=1e-4)
        assert session.get(f"/console/state?experiment=trial&after={at}").json()["points"] == []
        assert len(session.get("/console/state?experiment=trial&after=nonsense").json()["points"]) == 1
        write_report(client, report(plan, "r2", version=1, challenger=None))
        write_report(client, report(plan, "r3", challenger=None, refused=B, refused_because="hash"))
        write_report(client, report(plan, "r4", version=1, loading=B))
        write_report(client, report(plan, "r5", readable=False))
        states = {r["replica"]: r["state"] for r in session.get("/console/state").json()["replicas"]}
        assert states == {
            "r1": "as planned",
            "r2": "behind",
            "r3": "refuses",
            "r4": "loading",
            "r5": "cannot read the plan",
        }
        client.delete(LEASE_KEY)
        assert session.get("/console/state").json()["controller"] is None


def test_what_is_wrong_is_said(client: redis.Redis, clean_redis: str, logged_in: LoggedIn) -> None:
    with console(NOBODY) as base:
        session = logged_in(base)
        state = session.get("/console/state").json()
        assert "Redis does not answer" in state["redis"]
        assert (state["plan"], state["running"]) == (None, False)
        refused = abort(session)
        assert (refused.status_code, "did not confirm" in refused.json()["detail"]) == (503, True)
        assert (
            session.post("/console/logout", data={"form_token": form_token(session.get("/console").text)}).status_code
            == 303
        )
    with console(clean_redis) as base:
        session = logged_in(base)
        client.set(PLAN_KEY, "nonsense")
        assert "malformed" in session.get("/console/state").json()["redis"]


def test_redis_comes_back(monkeypatch: pytest.MonkeyPatch, logged_in: LoggedIn) -> None:
    monkeypatch.setattr(routes, "FRESH_S", 0.0)
    monkeypatch.setattr(routes, "REDIS_MS", 300.0)
    with running_redis() as url, console(url) as base, redis.Redis.from_url(url) as own:
        session = logged_in(base)
        begin(own)
        assert session.get("/console/state").json()["running"]
        own.execute_command("CLIENT", "PAUSE", 900, "ALL")
        assert "Redis does not answer" in session.get("/console/state").json()["redis"]
        assert own.ping()
        assert session.get("/console/state").json()["running"]


def test_every_answer_carries_the_headers_and_none_is_in_the_api(clean_redis: str, logged_in: LoggedIn) -> None:
    with console(clean_redis) as base:
        session = logged_in(base)
        for path in (
            "/console",
            "/console/login",
            "/console/state",
            "/console/static/console.js",
            "/console/static/none.js",
        ):
            answer = session.get(path)
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert (answer.headers["x-frame-options"], answer.headers["x-content-type-options"]) == ("DENY", "nosniff")
        assert session.get("/console/static/none.js").status_code == 404
        assert session.get("/console/static/..%2Froutes.py").status_code == 404
        for name, kind in routes.STATIC.items():
            assert httpx.get(f"{base}/console/static/{name}").headers["content-type"].startswith(kind)
        page = session.get("/console").text
        assert "style=" not in page
        assert not any(f" on{event}=" in page for event in ("click", "load", "submit"))
        assert not [path for path in httpx.get(f"{base}/openapi.json").json()["paths"] if "console" in path]
        assert session.put("/console/abort").status_code == 405
        long = "x" * (routes.FORM_BYTES + 1)
        assert (
            session.post("/console/abort", content=long, headers={"X-Form-Token": form_token(page)}).status_code == 413
        )


def test_the_history_is_bounded(
    client: redis.Redis, clean_redis: str, monkeypatch: pytest.MonkeyPatch, logged_in: LoggedIn
) -> None:
    monkeypatch.setattr("serving.console.state.HISTORY", 5)
    with console(clean_redis) as base:
        plan = begin(client)
        for version in range(plan.version, plan.version + 6):
            publish_plan(client, plan.arms, version, plan.experiment, Author("hold", "<script>alert(1)</script>"))
        state = logged_in(base).get("/console/state").json()
        assert [c["version"] for c in state["history"]] == [8, 7, 6, 5, 4]
        assert state["gaps"] == []
        assert len(read_history(client)) == 8
        json.dumps(state)
