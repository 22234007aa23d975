"""`degre replay` on a real bundle, with lists that a real collector wrote."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from tiny_bundle import TinyWorld
from typer.testing import CliRunner

from degre_prod.config import CollectConfig, JudgeConfig, Settings
from degre_prod.constraints.spec import Constraints
from degre_prod.encoding.encoder import save_encoder
from degre_prod.errors import DataError, MismatchError
from degre_prod.models.judge import Judge
from degre_prod.rows import TrainingRow
from degre_prod.training.judge import judge_spec
from degre_prod.training.modules import save_module
from orchestration import cli
from orchestration.collect.collector import collect
from orchestration.collect.files import collected_files
from orchestration.replaying import replay as module
from orchestration.replaying.answers import answer
from orchestration.replaying.replay import replay
from orchestration.run import Run, create_run
from serving.event_log import stream_key

LATER = timedelta(days=30)  # of the collected lists after the data set's own log
SETTINGS = Settings(scaling={"num_workers": 0})


@pytest.fixture
def run(tiny: TinyWorld, tmp_path: Path) -> Run:
    dataset = tmp_path / "data"
    shutil.copytree(tiny.dataset, dataset)
    return create_run(tmp_path / "run", dataset, SETTINGS)


def jury(tiny: TinyWorld, folder: Path) -> Path:
    folder.mkdir(parents=True)
    torch.manual_seed(3)
    spec = judge_spec(tiny.bundle.schema, tiny.bundle.encoder.layout(), JudgeConfig(width=8, layers=1))
    save_module(Judge(spec), spec, folder, "judge")
    save_encoder(tiny.bundle.encoder, folder / "encoder.json")
    return folder


def served(row: TrainingRow, number: int, shown: list[Any], **changes: Any) -> dict[str, Any]:
    request = row.request

    def moment(us: int) -> str:
        return (datetime.fromtimestamp(us / 1e6, UTC) + LATER).isoformat()

    def plain(values: Any) -> list[Any]:
        return [None if v is None or v != v else v if isinstance(v, str) else float(v) for v in values]

    return {
        "request_id": f"later-{number}",
        "event_timestamp": moment(request.event_timestamp_us),
        "user_id": request.user_id,
        "context": {name: plain([value])[0] for name, value in request.context.items()},
        "candidate_ids": list(request.candidate_ids),
        "upstream_scores": {name: plain(v) for name, v in request.scores.items()},
        "candidate_features": {name: plain(v) for name, v in request.candidate_features.items()},
        "recent_events": [
            {"item_id": e.item_id, "type": e.type, "timestamp": moment(e.timestamp_us)} for e in request.recent_events
        ],
        "shown_ids": shown,
        "bundle": "b",
        "arm": "champion",
        "source": "generator",
        "propensity": [0.9] * len(shown),
        "list_propensity": 0.9 ** len(shown),
    } | changes


def test_lists_that_the_bundle_made_are_found_again(tiny: TinyWorld, run: Run, clean_redis: str) -> None:
    """Collected lists that are the bundle's own, some under constraints, and confirmed without any click."""
    # Of the second half, whose features are still those of a month later.
    rows = [r for r in tiny.rows[31:] if len(r.request.candidate_ids) >= 4][:12]
    assert len(rows) == 12
    with redis.Redis.from_url(clean_redis) as client:
        for number, row in enumerate(rows):
            ids = row.request.candidate_ids
            own = Constraints(pinned={0: ids[-1]}, exclude=(ids[0],)).model_dump_json() if number % 2 else None
            shown = [ids[c] for c in answer(tiny.bundle, row, own, 3)]
            assert number % 2 == 0 or (shown[0] == ids[-1] and ids[0] not in shown)
            record = served(row, number, shown, constraints=own)
            client.xadd(stream_key("served", record["request_id"]), {"record": json.dumps(record)})
            if number < 9:
                event = {
                    "event_id": f"e{number}",
                    "id": shown[0],
                    "type": "click",
                    "timestamp": record["event_timestamp"],
                }
                told = {"request_id": record["request_id"], "shown_ids": None, "events": [event]}
                client.xadd(stream_key("feedback", record["request_id"]), {"record": json.dumps(told)})
        assert collect(client, run.dataset, CollectConfig(), flush=True) == 12
    judge = jury(tiny, run.folder / "judge")
    page, document = replay(run, tiny.bundle.path, days=7)
    assert (document["requests"], document["unconfirmed"], document["rejected"]) == (9, 3, 0)
    assert document["agreement"]["same_list"]["mean"] == 1.0
    assert document["judge"] == str(judge)
    assert document["judged"]["difference"]["mean"] == 0.0
    assert document["earned"]["mean"] == 1.0
    ips = next(e for e in document["off_policy"] if e["name"] == "IPS by slot")
    assert ips["value"] == pytest.approx(1 / 0.9, rel=1e-5)
    assert not ips["estimable"]  # 9 requests
    assert {s["column"] for s in document["segments"]} >= {"hour", "user.group", "context.device", "source", "arm"}
    assert not re.search(r'(src|href)="(?!data:|#)', page.read_text())

    everything = replay(run, tiny.bundle.path, days=100)[1]
    assert everything["requests"] == 69
    assert everything["agreement"]["same_list"]["mean"] < 1.0
    assert everything["judged"]["difference"]["mean"] != 0.0


def test_a_second_time_nothing_is_made_and_an_interrupted_one_goes_on(
    tiny: TinyWorld, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judge = jury(tiny, tmp_path / "judge")

    def interrupted(*_args: object, **_named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(module, "publish", interrupted)  # every part is made, and then Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            replay(run, tiny.bundle.path, judge=judge)
    (part,) = (run.folder / "replay").glob(".answers-*/part-*.parquet")
    made = part.stat().st_mtime_ns
    page, document = replay(run, tiny.bundle.path, judge=judge)
    (kept,) = (run.folder / "replay" / "answers").glob("part-*.parquet")
    assert kept.stat().st_mtime_ns == made
    before = page.read_bytes()
    assert replay(run, tiny.bundle.path, judge=judge) == (page, document)
    assert page.read_bytes() == before
    assert kept.stat().st_mtime_ns == made


def test_the_command(tiny: TinyWorld, run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ["replay", str(run.folder), "--bundle", str(tiny.bundle.path), "--out", str(page), "--days", "0.0005"]
    done = CliRunner().invoke(cli.app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.strip().splitlines()[-1])
    assert 0 < document["requests"] < 60
    assert document["judge"] is None
    assert page.is_file()


def test_what_cannot_be_replayed(tiny: TinyWorld, run: Run) -> None:
    schema = run.dataset / "schema.yaml"
    schema.write_text(schema.read_text().replace("name: small", "name: other", 1))
    with pytest.raises(MismatchError, match="of data set small"):
        replay(run, tiny.bundle.path)
    schema.write_text(schema.read_text().replace("name: other", "name: small", 1))
    (run.dataset / "impressions.parquet").unlink()
    assert collected_files(run.dataset / "collected") == []
    with pytest.raises(DataError, match="no log here"):
        replay(run, tiny.bundle.path)
