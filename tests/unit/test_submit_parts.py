"""`degre submit` without a cluster: what it sends, under which id, and how it follows a job over broken connections."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from degre_prod.errors import ConfigurationError, ServiceError
from orchestration.commands.submit import reason, result
from orchestration.jobs import cluster
from orchestration.jobs.cluster import JobServer, job_server
from orchestration.jobs.command import checked_id, job_command, runtime_env

MINE = job_command(["mine", "/srv/run"], None)


@pytest.mark.parametrize(
    "words", [["retrain", "/srv/run", "--json"], ["train", "evaluator", "/srv/a run"], ["evaluate", "/srv/run"]]
)
def test_the_words_are_the_jobs_own(words: list[str]) -> None:
    command = job_command(words, None)
    assert command.words == tuple(words)
    assert command.entrypoint == "degre " + " ".join(words).replace("/srv/a run", "'/srv/a run'")
    with runtime_env(command) as env:
        assert env == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serve", "/srv/bundle"], "is no job; one of: retrain, mine"),
        (["train", "/srv/run"], "is no job"),
        (["mine"], "absolute path"),
        (["mine", "runs/shop"], "not 'runs/shop'"),
        (["mine", "--config", "/srv/x.yaml", "/srv/run"], "not '--config'"),
    ],
)
def test_what_cannot_be_a_job_is_refused_here(words: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        job_command(words, None)


def test_the_configuration_travels_and_is_checked_first(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mining: {requests: 7}\n")
    command = job_command(["mine", "/srv/run"], file)
    assert command.entrypoint == "degre mine /srv/run --config degre.yaml"
    with runtime_env(command) as env:
        sent = Path(env["working_dir"])
        assert {f.name: f.read_text() for f in sent.iterdir()} == {"degre.yaml": file.read_text()}
    assert not sent.exists()
    with pytest.raises(ConfigurationError, match="two configurations"):
        job_command(["mine", "/srv/run", "--config=/srv/x.yaml"], file)
    file.write_text("mining: {request: 7}\n")
    with pytest.raises(ConfigurationError, match=r"mining\.request is not a setting"):
        job_command(["mine", "/srv/run"], file)


def test_the_id_comes_from_the_words_and_the_configurations_text(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("mining: {requests: 7}\n")
    stems = {
        MINE.stem,
        job_command(["mine", "/srv/other"], None).stem,
        job_command(["mine", "/srv/run"], file).stem,
        job_command(["evaluate", "/srv/run"], None).stem,
    }
    assert len(stems) == 4
    assert all(checked_id(f"{stem}-1") for stem in stems)
    assert job_command(["mine", "/srv/run"], None).stem == MINE.stem
    assert MINE.stem.startswith("degre-mine-")


@pytest.mark.parametrize("text", ["", "-a", "a b", "a/b", "a" * 129])
def test_an_id_that_ray_would_choke_on_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="no submission id"):
        checked_id(text)


def test_the_result_is_the_last_line_when_it_is_a_document() -> None:
    assert result('mining: 3 of 3\n{"status": "done"}\n\n') == {"status": "done"}
    assert result('{"status": "done"}\nbye\n') is None
    assert result("3\n") is None
    assert result("") is None


def test_a_reason_is_one_line_our_own_where_there_is_one() -> None:
    ray = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\n"
    assert reason(ray + "x\ndegre: no data set here\n╰──╯\n") == "no data set here"
    assert reason(ray + "Killed\n") == "Job entrypoint command failed with exit code 2"
    assert reason("") == ""


@pytest.mark.parametrize("address", [None, "auto", "head:6379", "ray://head:10001"])
def test_an_address_that_is_no_job_server_is_refused(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigurationError, match="http://HEAD:8265"):
        job_server(address)


@dataclass
class Info:
    """A job as Ray's client tells it."""

    submission_id: str
    entrypoint: str = MINE.entrypoint
    status: Any = None
    message: str = ""
    start_time: int = 1000
    end_time: int | None = 3500
    driver_exit_code: int | None = None


@dataclass
class Status:
    value: str


@dataclass
class Client:
    """Ray's client, its jobs by id with the statuses they go through, and the log as each connection gives it."""

    statuses: dict[str, list[str]] = field(default_factory=dict)
    logs: list[list[str | Exception]] = field(default_factory=list)
    entrypoint: str = MINE.entrypoint
    taken: str | None = None  # an id that another submitter takes meanwhile

    def get_job_info(self, job_id: str) -> Info:
        left = self.statuses[job_id]
        return Info(job_id, self.entrypoint, Status(left.pop(0) if len(left) > 1 else left[0]))

    def list_jobs(self) -> list[Info]:
        return [self.get_job_info(job_id) for job_id in self.statuses]

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> str:
        assert (entrypoint, runtime_env) == (MINE.entrypoint, {})
        if submission_id == self.taken:
            self.statuses[submission_id] = ["PENDING"]
            raise RuntimeError("Request failed with status code 400: already exists")
        self.statuses[submission_id] = ["PENDING"]
        return submission_id

    async def tail_job_logs(self, _job_id: str) -> AsyncIterator[str]:
        for piece in self.logs.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> JobServer:
    monkeypatch.setattr(cluster, "_client", lambda _address: Client())
    monkeypatch.setattr(cluster, "_PAUSE_S", 0.0)
    return JobServer("http://head:8265")


def attempt(number: int) -> str:
    return f"{MINE.stem}-{number}"


@pytest.mark.parametrize(
    ("there", "wanted", "started"),
    [
        ({}, (attempt(1), True), [attempt(1)]),
        ({attempt(1): ["RUNNING"]}, (attempt(1), False), []),
        ({attempt(1): ["SUCCEEDED"], attempt(2): ["PENDING"]}, (attempt(2), False), []),
        ({attempt(1): ["FAILED"], attempt(10): ["STOPPED"]}, (attempt(11), True), [attempt(11)]),
        ({"other-1": ["RUNNING"], attempt(1) + "-x": ["RUNNING"]}, (attempt(1), True), [attempt(1)]),
    ],
)
def test_one_job_of_a_command_at_a_time(
    server: JobServer, there: dict[str, list[str]], wanted: tuple[str, bool], started: list[str]
) -> None:
    server._client.statuses = dict(there)
    assert server.start(MINE) == wanted
    assert sorted(set(server._client.statuses) - set(there)) == started


@pytest.mark.parametrize("status", ["RUNNING", "SUCCEEDED", "FAILED", "STOPPED"])
def test_an_id_of_ones_own_is_started_once(server: JobServer, status: str) -> None:
    assert server.start(MINE, "nightly") == ("nightly", True)
    server._client.statuses = {"nightly": [status]}
    assert server.start(MINE, "nightly") == ("nightly", False)
    server._client.entrypoint = "degre mine /srv/other"
    with pytest.raises(ConfigurationError, match=r"nightly is another job, `degre mine /srv/other`"):
        server.start(MINE, "nightly")


def test_two_submitters_at_the_same_moment_get_one_job(server: JobServer) -> None:
    server._client.taken = attempt(1)
    assert server.start(MINE) == (attempt(1), False)


def test_a_log_is_shown_once_over_broken_connections(server: JobServer) -> None:
    lost = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
    server._client.statuses = {"x": ["RUNNING"] * 4 + ["SUCCEEDED"]}
    server._client.logs = [["one\ntw", lost], [lost], ["one\n", "two\nthr"], ["one\ntwo\nthree\n"]]
    said: list[str] = []
    job = server.follow("x", said.append)
    assert "".join(said) == "one\ntwo\nthree\n"
    assert (job.status, job.seconds) == ("SUCCEEDED", 2.5)


def test_a_job_server_that_stays_away_is_given_up(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE_S", 0.0)
    server._client.statuses = {"x": ["RUNNING"]}
    server._client.logs = [[OSError("no route to host")]]
    with pytest.raises(ServiceError, match=r"no route to host; x may go on, look again with `--id x`"):
        server.follow("x", lambda _: None)


def test_jobs_are_documents(server: JobServer) -> None:
    server._client.statuses = {"x": ["STOPPED"]}
    assert json.loads(json.dumps(vars(server.cancel("x"))))["status"] == "STOPPED"
