"""Sessions of the console, where requests come from, what is kept for its plots."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from console_trial import begin
from fastapi import Request
from pydantic import SecretStr
from rollout_plans import A, B, arm

from degre_prod.errors import MismatchError
from serving import moves
from serving.console.origin import is_https, require_own_name, require_same_site
from serving.console.session import GUESSES, SESSION_S, Guesses, Sessions, form_token, form_token_right
from serving.console.state import _rate, thinned
from serving.looks import Point, points_key, read_look, read_points, write_look
from serving.moves import abort
from serving.plan_store import Author, publish_plan, read_history
from serving.problems import Problem


def sessions(*tokens: str, at: list[float] | None = None) -> Sessions:
    now = at or [1000.0]
    return Sessions([SecretStr(token) for token in tokens], lambda: now[0])


def test_each_token_opens_a_session_that_every_replica_knows_until_it_expires() -> None:
    now = [1000.0]
    first, second = sessions("old", "new", at=now), sessions("new", at=now)
    assert first.needed
    opened = first.open(" new ")
    assert opened is not None
    assert opened.expires == 1000 + SESSION_S
    assert second.check(opened.value) == opened
    assert "new" not in opened.value
    earlier = first.open("old")
    assert earlier is not None
    assert first.check(earlier.value) == earlier
    assert second.check(earlier.value) is None  # the token it was opened with is gone
    assert opened.name != first.open("new").name  # type: ignore[union-attr]
    now[0] += SESSION_S - 1
    assert second.check(opened.value) is not None
    now[0] += 1
    assert second.check(opened.value) is None


@pytest.mark.parametrize("offered", ["", "ne", "new1", "NEW", "nöw"])
def test_nothing_else_opens_one(offered: str) -> None:
    assert sessions("new").open(offered) is None


def test_a_cookie_that_was_changed_is_none() -> None:
    ours = sessions("token")
    opened = ours.open("token")
    assert opened is not None
    expires, nonce, signature = opened.value.split(".")
    other = "0" if signature[0] != "0" else "1"
    for value in (
        None,
        "",
        ".",
        "..",
        f"{int(expires) + 1}.{nonce}.{signature}",
        f"{expires}.{nonce}x.{signature}",
        f"{expires}.{nonce}.{other}{signature[1:]}",
        f"{expires}.{nonce}.",
        f"{expires}.{nonce}.ö",
    ):
        assert ours.check(value) is None, value
    assert not sessions().needed
    assert sessions().check(opened.value) is None
    assert sessions().open("") is None


def test_a_form_belongs_to_its_cookie() -> None:
    assert form_token_right("cookie", form_token("cookie"))
    for cookie, given in (
        ("other", form_token("cookie")),
        ("cookie", None),
        ("cookie", "ö"),
        (None, form_token("")),
        ("", form_token("")),
    ):
        assert not form_token_right(cookie, given)


def test_guessing_is_slow() -> None:
    now = [0.0]
    guesses = Guesses(lambda: now[0])
    for _ in range(GUESSES):
        assert guesses.wait_s() == 0
        guesses.wrong()
    now[0] = 20.0
    assert guesses.wait_s() == 40
    now[0] = 60.0
    assert guesses.wait_s() == 0
    guesses.wrong()
    assert guesses.wait_s() == 0  # the others were made a minute ago, too
    now[0] = 61.0


def asked(method: str = "POST", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": "/console",
        "query_string": b"",
        "headers": raw,
        "scheme": "http",
    }
    return Request(scope | {"server": ("127.0.0.1", 80)})


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000", "127.3.2.1"])
def test_this_machines_own_names(host: str) -> None:
    require_own_name(asked(host=host))


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "127.0.0.1.evil.example", "192.168.1.4", "localhost.evil.example", ""]
)
def test_a_name_made_to_point_here_is_refused(host: str) -> None:
    with pytest.raises(Problem, match="own names"):
        require_own_name(asked(host=host))


@pytest.mark.parametrize(
    ("headers", "ours"),
    [
        ({"sec_fetch_site": "same-origin", "origin": "http://shop.example", "host": "inner:8000"}, True),
        ({"sec_fetch_site": "same-site"}, False),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "none"}, False),
        ({"origin": "http://here:8000", "host": "here:8000"}, True),
        ({"origin": "http://here:9000", "host": "here:8000"}, False),
        ({"origin": "null", "host": "here:8000"}, False),
        ({"host": "here:8000"}, True),
    ],
)
def test_forms_come_from_our_own_pages(headers: dict[str, str], ours: bool) -> None:
    if ours:
        require_same_site(asked(**headers))
        return
    with pytest.raises(Problem, match="elsewhere"):
        require_same_site(asked(**headers))


def test_tls_before_us_counts() -> None:
    assert is_https(asked(x_forwarded_proto="https"))
    assert is_https(asked(x_forwarded_proto="https, http"))
    assert not is_https(asked(x_forwarded_proto="http"))
    assert not is_https(asked())


def point(at: float, stage: str = "half", since: float = 0.0) -> Point:
    return Point(at, since, stage, {"champion": 1}, {"champion": int(at)}, {"primary": (0.1, None, 0.2)})


def test_looks_are_kept_by_the_age_of_their_stage(clean_redis: str) -> None:
    with redis.Redis.from_url(clean_redis) as client:
        assert read_look(client, "trial") is None
        for at in range(1, 1001):
            write_look(client, "trial", {"at": at}, point(float(at)))
        assert read_look(client, "trial") == {"at": 1000}
        kept = read_points(client, "trial")
        assert kept[0] == point(1.0)
        assert [p.at for p in kept[:100]] == list(range(1, 101))  # a hundredth of the age is less than a second
        assert 250 < len(kept) < 100 + 100 * 2.4  # and then ln 10 hundreds more
        write_look(client, "trial", {}, point(1000.5, "all", 1000.4))
        write_look(client, "trial", {}, point(1000.5, "all", 1000.4))
        assert [p.stage for p in read_points(client, "trial")[-2:]] == ["half", "all"]


def test_thinning_keeps_the_newest() -> None:
    points = [point(float(n)) for n in range(1000)]
    few = thinned(points, 400)
    assert len(few) <= 400
    assert few[-1] is points[-1]
    assert thinned(points[:3], 400) == points[:3]
    assert thinned([], 400) == []


def test_answers_a_second_are_those_of_the_present_stage() -> None:
    assert _rate([]) is None
    points = [point(5.0, "shadow"), point(100.0, since=100.0), point(106.0, since=100.0)]
    assert _rate(points) is None  # less than ten seconds
    points += [point(130.0, since=100.0)]
    assert _rate(points) == {"seconds": 24.0, "until": 130.0, "champion": 1.0}


def test_an_abort_is_tried_again_when_the_machine_moves_meanwhile(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis.Redis.from_url(clean_redis) as client:
        plan = begin(client)
        moved: list[int] = []

        def publish(at: redis.Redis, arms: Any, version: int, *rest: Any) -> Any:
            if not moved:  # a controller was faster
                moved.append(1)
                assert plan.experiment is not None
                held = plan.experiment.model_copy(update={"held": True})
                publish_plan(client, plan.arms, plan.version, held, Author("hold"))
            return publish_plan(at, arms, version, *rest)

        monkeypatch.setattr(moves, "publish_plan", publish)
        with pytest.raises(MismatchError, match="experiment other is over; trial is under way"):
            abort(client, Author(), "other")
        after = abort(client, Author(why="enough", by="bob"), "trial")
        assert (after.version, after.champion.manifest_sha256, after.experiment) == (plan.version + 2, A, None)
        assert [p.change.action for p in read_history(client)[-2:] if p.change] == ["hold", "abort"]
        with pytest.raises(MismatchError, match="no experiment"):
            abort(client, Author())

        begin(client, id="second")
        monkeypatch.setattr(moves, "publish_plan", lambda *_: (_ for _ in ()).throw(MismatchError("changed again")))
        with pytest.raises(MismatchError, match="changed again"):
            abort(client, Author())


def test_points_are_small(clean_redis: str) -> None:
    with redis.Redis.from_url(clean_redis) as client:
        write_look(client, "trial", {}, point(1.0))
        assert len(client.lindex(points_key("trial"), 0)) < 300
        assert json.loads(client.lindex(points_key("trial"), 0))["metrics"] == {"primary": [0.1, None, 0.2]}
        assert arm(B).manifest_sha256 == B
