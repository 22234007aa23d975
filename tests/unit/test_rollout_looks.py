"""What the controller leaves behind at each look, the judge's opinion among it, and the page that is made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import torch
from console_trial import begin, look, users_come
from pydantic import SecretStr
from rollout_plans import plan_at
from serving_server import poll
from tiny_bundle import TinyWorld, tiny_world
from typer.testing import CliRunner

from degre_prod.config import RedisConfig, ServingConfig, Settings
from degre_prod.encoding.store import load_encoded, save_encoded
from degre_prod.errors import MismatchError
from degre_prod.experiments.moments import moments_of
from degre_prod.models.judge import Judge, JudgeSpec
from degre_prod.training.data import to_batch
from degre_prod.training.modules import load_judge, save_module
from orchestration.cli import app
from orchestration.rollout import accounts, moves
from orchestration.rollout.controller import Controller
from orchestration.rollout.decide import decide
from orchestration.rollout.evidence import Evidence, ShadowCounts, results
from orchestration.rollout.figures import figures, point
from orchestration.rollout.judged import ListJudge, read_judged
from orchestration.rollout.page import write_page
from orchestration.rollout.status import as_text, status
from orchestration.rollout.sums import judged_users_key
from serving import shadow as shadowing
from serving.deadline import Deadline
from serving.looks import read_look, read_points
from serving.metrics import Metrics
from serving.plan_store import LEASE_KEY, Author
from serving.protocol import RerankRequest
from serving.replica import build_engine
from serving.shadow import Shadow, lists_key


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return tiny_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def judge(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a judge that was trained on nothing."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(1)
    encoder = tiny.bundle.encoder
    weights = tuple(tuple(float(w) for w in row) for row in encoder.schema.slot_weights_OL())
    model = Judge(JudgeSpec(encoder.layout(), 16, 1, weights))
    save_module(model, model.spec, folder, "judge")
    (folder / "encoder.json").write_text(encoder.to_json())
    return folder


@pytest.fixture
def client(clean_redis: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    monkeypatch.setattr(accounts, "SETTLE_S", -1.0)
    monkeypatch.setattr(shadowing, "FLUSH_S", 0.005)
    with redis.Redis.from_url(clean_redis) as made:
        yield made


def shadowed(tiny: TinyWorld, url: str, users: range, *, same: bool = False) -> None:
    """Requests of these users answered in shadow; the champion is taken to have shown the candidates in upstream order."""
    settings = Settings(redis=RedisConfig(url=SecretStr(url)), serving=ServingConfig(deadline_ms=5000.0))
    engine = build_engine(tiny.bundle, settings)
    shadow = Shadow(url, cpu_share=1.0, queue=100, timeout_ms=1000.0, metrics=Metrics())
    with redis.Redis.from_url(url) as client:
        for user in users:
            ids = [(user + i) % 20 for i in range(5)]
            candidates = [{"id": i, "scores": {"upstream": float((7 * user + 3 * i) % 11)}} for i in ids]
            body = {"user_id": user, "request_id": f"r{user}", "candidates": candidates}
            prepared = engine.prepare(RerankRequest.model_validate(body))
            shown: list[Any] = ids[:3]
            if same:
                shown = engine.answer(prepared, Deadline(5000.0), in_shadow=True).response.ids()
            before = client.xlen(lists_key("trial"))
            shadow.offer(engine, "trial", prepared, shown, True)
            poll(lambda before=before: client.xlen(lists_key("trial")) == before + 1)
    shadow.close()
    engine.close()


def test_the_judge_values_both_lists_of_one_request_a_user(
    client: redis.Redis, clean_redis: str, tiny: TinyWorld, judge: Path, tmp_path: Path
) -> None:
    plan = plan_at(0, guardrail_min_users=15)
    experiment = plan.experiment
    assert experiment is not None
    client.set(LEASE_KEY, "mine")
    assert read_judged(client, experiment) is None
    shadowed(tiny, clean_redis, range(12))
    shadowed(tiny, clean_redis, range(6))  # again: one request a user counts
    records = [json.loads(fields[b"record"]) for _, fields in client.xrange(lists_key("trial"))]
    assert len(records) == 18
    assert 0 < client.ttl(lists_key("trial")) <= 3600
    at_work = ListJudge(judge, clean_redis)
    assert at_work.look(client, experiment, "mine") == 12
    assert at_work.look(client, experiment, "mine") == 0
    found = read_judged(client, experiment)
    assert found is not None
    assert (found.users, found.low, found.high) == (12, -np.inf, np.inf)
    assert found.as_dict()["low"] is None
    values = [
        [directly(at_work, judge, r, r[name], tmp_path) for name in ("challenger_ids", "champion_ids")]
        for r in records[:12]
    ]
    assert [found.challenger, found.champion] == pytest.approx(np.mean(values, 0), rel=1e-5)
    shadowed(tiny, clean_redis, range(12, 20))
    assert at_work.look(client, experiment, "mine") == 8
    found = read_judged(client, experiment)
    assert found is not None
    assert found.effect == pytest.approx(found.challenger / found.champion - 1)
    assert found.low < found.effect < found.high < np.inf
    assert client.scard(judged_users_key("trial")) == 20
    shadowed(tiny, clean_redis, range(20, 22))
    with pytest.raises(MismatchError, match="another controller"):
        at_work.look(client, experiment, "theirs")
    at_work.close()


def directly(at_work: ListJudge, judge: Path, record: dict[str, Any], items: list[int], folder: Path) -> float:
    """The judge's value of one list, asked the short way."""
    row = at_work._row(record)
    encoded = at_work._jury.encoder.encode(row.request, row.user, row.items)
    place = np.array([[record["candidate_ids"].index(item) for item in items]])
    nothing = [np.zeros((1, 3), np.float32)]
    save_encoded(folder / "one", [encoded], shown=[place[0]], feedback=nothing, request_ids=["r"], timestamps=[0])
    batch = to_batch(load_encoded(folder / "one"), np.array([0]), only_BX=place)
    with torch.inference_mode():
        return float(load_judge(judge).utilities(batch)[0])


def test_equal_lists_are_worth_the_same(client: redis.Redis, clean_redis: str, tiny: TinyWorld, judge: Path) -> None:
    experiment = plan_at(0, guardrail_min_users=5).experiment
    assert experiment is not None
    client.set(LEASE_KEY, "mine")
    shadowed(tiny, clean_redis, range(8), same=True)
    at_work = ListJudge(judge, clean_redis)
    assert at_work.look(client, experiment, "mine") == 8
    found = read_judged(client, experiment)
    assert found is not None
    assert found.effect == pytest.approx(0, abs=1e-9)
    at_work.close()


def test_the_controller_lets_the_judge_look_in_shadow_alone_and_survives_it(client: redis.Redis) -> None:
    class Counting:
        looks, fails = 0, False

        def look(self, *_: Any) -> int:
            self.looks += 1
            if self.fails:
                raise ValueError("no such column")
            return 0

    counting, said = Counting(), []
    begin(client, 0)
    controller = Controller(client, judge=counting, say=said.append)  # type: ignore[arg-type]
    assert controller.step() is not None
    counting.fails = True
    assert controller.step() is not None
    assert counting.looks == 2
    assert "the judge values nothing: ValueError: no such column" in said
    moves.advance(client, Author())
    assert controller.step() is not None
    assert counting.looks == 2


def test_each_look_is_kept_as_status_tells_it(client: redis.Redis) -> None:
    begin(client, 1)
    users_come(client, "half", range(100))
    look(client)
    kept, told = read_look(client, "trial"), status(client)
    assert kept is not None
    assert {k: v for k, v in kept.items() if k not in ("at", "seconds")} == {
        k: v for k, v in told["experiment"].items() if k not in ("at", "seconds")
    }
    assert kept["requests"] == {"champion": 50, "challenger": 50}
    (kept_point,) = read_points(client, "trial")
    primary = told["experiment"]["results"]["arms"][0]["primary"]
    assert kept_point.metrics["primary"] == (primary["effect"], primary["low"], primary["high"])
    assert set(kept_point.metrics) == {"primary", "fallback", "error", "p99"}
    text = as_text(told)
    assert "judge: none has valued the lists" in text
    client.hset(
        "degre:trial:trial",
        mapping={f"judged|{k}": v for k, v in moments_of(np.full(30, 1.1), np.arange(30) % 2 + 0.5).flat().items()},
    )
    assert "1.1 a list against 1, +10.00% (" in as_text(status(client))


def test_without_a_control_nothing_is_compared() -> None:
    """At 100 % guardrails are ceilings made of what the champion had before; the primary metric says nothing."""
    plan = plan_at(2)
    experiment = plan.experiment
    assert experiment is not None

    def moments(users: int, bad: float, clicks: float = 0.5) -> dict[str, Any]:
        requests = np.full(users, 2.0)
        few = moments_of((np.arange(users) < bad * users) * 2.0, requests)
        return {
            "primary": moments_of(np.full(users, 2 * clicks) + np.arange(users) % 2, requests),
            "fallback": few,
            "error": few,
            "p99": few,
        }

    def told(bad: float, usual: float | None, users: int = 400) -> Any:
        before = {} if usual is None else {"half": {"champion": moments(users, usual)}}
        found = results(experiment, before | {"all": {"challenger": moments(400, bad, 0.01)}})
        assert found is not None
        return found.arms[0]

    arm = told(0.05, 0.02)
    assert arm.primary.status == "too_early"
    assert np.isinf([arm.primary.low, arm.primary.high]).all()
    assert arm.control_users == 0
    assert "no control is left" in arm.reason
    assert {g.kind for g in arm.guardrails} == {"ceiling"}
    assert {g.status for g in arm.guardrails} == {"ok"}
    bound = arm.guardrails[0].bound
    error = (0.02 * 0.98 / 400) ** 0.5
    assert (
        0.3 + 0.02 + 1.8 * error < bound < 0.3 + 0.02 + 2.6 * error
    )  # `max_rise`, the champion's share, two standard errors
    assert told(0.05, None).guardrails[0].bound == pytest.approx(0.3)
    assert told(0.05, 0.02, users=19).guardrails[0].bound == pytest.approx(0.3)  # fewer than guardrail_min_users
    broken = told(0.9, 0.02)
    assert (broken.verdict, {g.status for g in broken.guardrails}) == ("harm", {"breach"})
    found = results(experiment, {"half": {"champion": moments(400, 0.02)}, "all": {"challenger": moments(400, 0.9)}})
    evidence = Evidence(experiment.since, (), ShadowCounts(), {"champion": 0, "challenger": 400}, found)
    decision = decide(plan, evidence)
    assert decision.move == "rollback"
    assert "fallback guardrail: 90.00% of the requests where 33." in decision.reason
    told_so = figures(plan, evidence, decision)
    assert not told_so["controlled"]
    assert set(point(plan, told_so).metrics) == {"fallback:share", "error:share", "p99:share"}


def test_the_page_tells_it_all_and_loads_nothing(client: redis.Redis, clean_redis: str, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="no experiment yet"):
        write_page(client, tmp_path / "report.html")
    begin(client, 1, id="trial")
    text = write_page(client, tmp_path / "report.html").read_text()
    assert "No controller has looked" in text
    for users in (range(80), range(80, 160)):
        users_come(client, "half", users)
        look(client)
    report = tmp_path / "deep" / "report.html"
    done = CliRunner().invoke(app, ["rollout", "status", "--report", str(report), "--redis", clean_redis])
    assert done.exit_code == 0, done.output
    moves.abort(client, Author(why="<enough>", by="bob"))
    text = write_page(client, report).read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("data:image/svg+xml") == 4
    for part in ("Over: aborted at", "&lt;enough&gt;", "click a request", "fallback", "start"):
        assert part in text
