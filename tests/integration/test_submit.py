"""`degre submit` on a real cluster of two nodes: cancelled, taken up again and left by its submitter, a job comes to its result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray_nodes import BIN, PATIENCE_S, Nodes, ray_nodes

from degre_prod.artefact import file_digest
from degre_prod.config import Settings
from degre_prod.worlds.simulate import simulate
from orchestration import stages
from orchestration.run import Run, create_run

SIZES: dict[str, Any] = {
    "evaluator": {"prefix_state": "additive", "width": 8, "epochs": 1, "min_steps": 1, "togo_steps": 3},
    "mining": {"requests": 400, "beam_width": 8, "keep": 2, "shard_size": 1},
}
SHARDS = 400


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_nodes(2, 2) as started:
        yield started


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Mined in this process."""
    folder = tmp_path_factory.mktemp("alone")
    simulate("mixed", "small", folder / "data", train=SHARDS, validation=30, test=30)
    run = create_run(folder, folder / "data", Settings(**SIZES, scaling={"num_workers": 0}))
    stages.build_training_rows(run)
    for stage in (stages.encode, stages.train_evaluator, stages.mine):
        stage(run)
    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(SIZES | {"scaling": {"num_workers": 2}}))
    return file


@pytest.fixture
def folder(alone: Run, tmp_path: Path) -> Path:
    """A run that is ready to be mined."""
    run = create_run(tmp_path, alone.dataset, alone.settings)
    for name in ("training_set", "encoded", "evaluator"):
        (run.folder / name).symlink_to(getattr(alone, name))
    return run.folder


def line(nodes: Nodes, *words: str | Path) -> tuple[list[str], dict[str, str]]:
    return [str(BIN / "degre"), "submit", *map(str, words)], nodes.environment | {"RAY_ADDRESS": nodes.jobs}


def submit(nodes: Nodes, *words: str | Path, code: int = 0) -> tuple[Any, str]:
    """The document and what else was said."""
    words, environment = line(nodes, "--json", *words)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    return (json.loads(done.stdout) if done.stdout else None), done.stderr


def await_(condition: Callable[[], bool], pause_s: float = 0.05) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause_s)


def shards(folder: Path) -> dict[str, str]:
    return {file.name: file_digest(file) for file in folder.glob("shard-*")}


def ask(nodes: Nodes, path: str) -> Any:
    headers = {"Authorization": f"Bearer {nodes.environment['RAY_AUTH_TOKEN']}"}
    return httpx.get(f"{nodes.jobs}{path}", headers=headers, timeout=30).json()


def workers(nodes: Nodes) -> dict[int, str]:
    """The node of each training worker that is alive, by process."""
    actors = ask(nodes, "/api/v0/actors?detail=1")["data"]["result"]["result"]
    return {a["pid"]: a["node_id"] for a in actors if a["state"] == "ALIVE" and a["class_name"] == "RayTrainWorker"}


def await_workers(nodes: Nodes, job: str) -> list[int]:
    def both_there() -> bool:
        found = ask(nodes, f"/api/jobs/{job}")
        assert found["status"] in ("PENDING", "RUNNING"), found["message"]
        return len(set(workers(nodes).values())) == 2  # one on each node

    await_(both_there)
    return list(workers(nodes))


@contextmanager
def held(processes: list[int]) -> Iterator[None]:
    """What is looked at or done to a job mustn't race with its end."""
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


@pytest.mark.timeout(900)  # half a minute on a quiet machine
def test_a_job_is_cancelled_and_taken_up_again_and_outlives_its_submitter(
    nodes: Nodes, alone: Run, folder: Path, config: Path
) -> None:
    def mined() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in folder.glob(".mined-*/shard-*")}

    words = ["--config", config, "mine", folder]
    first, _ = submit(nodes, "--no-wait", *words)
    assert first["submitted"]
    processes = await_workers(nodes, first["id"])
    await_(lambda: len(mined()) >= 5, pause_s=0.002)
    with held(processes):
        cancelled, _ = submit(nodes, "--cancel", *words)
        assert (cancelled["id"], cancelled["status"]) == (first["id"], "STOPPED")
        await_(lambda: not workers(nodes))
    kept = mined()
    assert 5 <= len(kept) < SHARDS

    second = first["id"].removesuffix("1") + "2"
    command, environment = line(nodes, "--json", *words)
    submitter = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    await_(lambda: second in [job["submission_id"] for job in ask(nodes, "/api/jobs/")])
    processes = await_workers(nodes, second)
    submitter.send_signal(signal.SIGKILL)
    _, said = submitter.communicate()
    assert "submitted" in said
    assert second in said
    await_(lambda: len(mined()) > len(kept), pause_s=0.002)
    with held(processes):
        assert kept.items() <= mined().items()
        assert len(mined()) < SHARDS
        again = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert again.stderr
        log = iter(again.stderr.readline, "")
        assert any(f"degre: {second}: found, running" in told for told in log)
    answer, rest = again.communicate(timeout=600)
    found = json.loads(answer)
    assert (found["id"], found["status"], found["submitted"], found["exit_code"]) == (second, "SUCCEEDED", False, 0)
    assert "mining: " in rest
    assert shards(folder / "mined") == shards(alone.mined)


def test_a_job_that_fails_hands_on_its_exit_code_and_an_id_is_used_once(nodes: Nodes, tmp_path: Path) -> None:
    document, said = submit(nodes, "--id", "mine-nothing", "mine", tmp_path, code=2)
    assert (document["status"], document["exit_code"]) == ("FAILED", 2)
    assert "no data set here" in document["message"]
    assert said.count("no data set here") == 2  # in the log, and as the reason at its end
    again, _ = submit(nodes, "--id", "mine-nothing", code=2)
    assert again == document | {"submitted": False}
    nothing, said = submit(nodes, "--id", "mine-nothing", "evaluate", tmp_path, code=2)
    assert nothing is None
    assert f"mine-nothing is another job, `degre mine {tmp_path}`" in said


def test_who_has_no_token_is_told_so(nodes: Nodes) -> None:
    for token, mode in (("wrong", "token"), ("", "disabled")):
        stranger = nodes.environment | {"RAY_AUTH_TOKEN": token or "x", "RAY_AUTH_MODE": mode}
        command, _ = line(nodes, "--id", "x")
        done = subprocess.run(
            command, env=stranger | {"RAY_ADDRESS": nodes.jobs}, capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{nodes.jobs} does not know you: RAY_AUTH_MODE=token and" in done.stderr


def test_a_job_server_cannot_be_joined(nodes: Nodes, folder: Path) -> None:
    environment = nodes.environment | {"RAY_ADDRESS": nodes.jobs, "DEGRE_SCALING__NUM_WORKERS": "2"}
    command = [str(BIN / "degre"), "mine", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "is a job server, there `degre submit` runs" in done.stderr
