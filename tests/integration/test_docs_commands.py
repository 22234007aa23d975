"""Every command in README and manual: the cheap ones run, against real Redis, HTTP and a real bundle; all of them must parse.

What is only parsed says here why, and where the same command is run.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from docs_commands import REPOSITORY, ROOT, Block, Command, blocks, commands, degre_words, problem, resolve
from serving_fakes import SCHEMA, FakeBundle, fake_engine
from serving_server import HttpServer
from tiny_bundle import TinyWorld
from typer.testing import CliRunner

from degre_prod.schema import parse_schema
from orchestration.cli import app
from orchestration.rollout import moves
from orchestration.rollout.activate import activate
from serving.experiment import Design
from serving.plan_store import Author

RUN = {
    ("data", "validate"), ("bundle", "activate"), ("bundle", "show"), ("bundle", "verify"), ("collect",), ("forget",), ("rerank",),
    ("rollout", "start"), ("rollout", "status"), ("rollout", "advance"), ("rollout", "hold"), ("rollout", "resume"),
    ("rollout", "abort"), ("rollout", "promote"), ("rollout", "rollback"), ("features", "apply"),
    ("bench", "capacity"),
}  # fmt: skip
PARSED = {
    ("demo",): "minutes: integration/test_path.py runs its stages",
    ("serve",): "runs until Ctrl-C: integration/test_http_cli.py",
    ("retrain",): "a minute or more: integration/test_retrain.py",
    ("submit",): "a Ray cluster: integration/test_submit.py",
    ("replay",): "a trained run: integration/test_replay.py",
    ("evaluate",): "a trained run: integration/test_path.py",
    ("mine",): "a trained run: integration/test_path.py",
    ("train", "evaluator"): "minutes: integration/test_path.py",
    ("train", "generator"): "minutes: integration/test_path.py",
    ("data", "convert"): "a published data set: unit/test_datasets_commands.py",
    ("data", "simulate"): "40,000 requests: unit/test_datasets_commands.py",
    ("features", "materialize"): "the feature store again: contract/test_features_cli.py",
    ("rollout", "run"): "guides an experiment to its end: integration/test_rollout_cli.py",
    **dict.fromkeys([("bench", name) for name in ROOT.commands["bench"].commands], "minutes: integration/test_*bench*.py"),
}  # fmt: skip
# Programs that are not ours, which need a cluster, an engine or minutes, or do nothing of ours. What their words name is looked for.
FOREIGN = {
    "docker", "kubectl", "ray", "serve", "make", "promtool", "openssl", "eval", "curl", "python", "git", "cp", "cd", "mkdir", "cat",
    "set", "source",
}  # fmt: skip
SERVICE = "http://127.0.0.1:8000"
REQUEST = '{"user_id": 1, "candidates": [{"id": 3}, {"id": 4}]}'
INSIDE = re.compile(r"^(/srv/degre/run(?=/)|/data$)")  # the containers' run folder, and the data set mounted into them
MANUAL = [command for command in commands() if command.page != "cli.md"]


def outside(inside: re.Match[str]) -> str:
    return "data/mine" if inside[0] == "/data" else "runs/mixed-large"


def own(command: Command) -> tuple[str, ...] | None:
    return degre_words(command.words)


def is_run(command: Command) -> bool:
    words = own(command)
    return words is not None and resolve(words)[0] in RUN and not {"--follow", "--registry", "--help"} & set(words)


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda b: f"{b.page}: {b.text.splitlines()[0][:60]}")
def test_a_shell_would_read_it(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_of_ours_parses() -> None:
    wrong = [f"{command}: {said}" for command in commands() if (words := own(command)) and (said := problem(words))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "words",
    ["mine run --nope", "bundle nope", "bundle show", "rollout start x --id", "bench decode --candidates 0", "submit mine x --bad"],
)  # fmt: skip
def test_a_command_that_does_not_parse_is_noticed(words: str) -> None:
    assert problem(tuple(words.split()))


def test_no_command_of_ours_hides_in_another_kind_of_block() -> None:
    hidden = [f"{b.page}: {line}" for b in blocks("", "bash", "shell", "console") for line in b.text.splitlines()
              if b.page != "cli.md" and re.match(r"\$? ?(\.venv/bin/)?(degre|make|docker|kubectl) ", line)]  # fmt: skip
    assert not hidden, "a command belongs into a ```sh block:\n" + "\n".join(hidden)


def test_every_command_is_run_or_says_why_not() -> None:
    unknown = []
    for command in MANUAL:
        words, program = own(command), command.words[0]
        if words is not None:
            known = (
                is_run(command)
                or resolve(words)[0] in PARSED
                or bool({"--follow", "--registry", "--help"} & set(words))
            )
        else:
            known = program in FOREIGN or "/" in program
        if not known:
            unknown.append(str(command))
    assert not unknown, "\n".join(unknown)


def test_what_foreign_commands_name_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    missing = []
    for command in MANUAL:
        program, *rest = command.words
        if program == "make":
            missing += [
                str(command) for word in rest if "=" not in word and not word.startswith("-") and word not in targets
            ]
        elif program in ("docker", "kubectl"):
            named = [word for flag, word in pairwise(rest) if flag in ("-f", "-k", "--file")]
            named += [word for word in rest if word.startswith(("deploy/", "docs/"))]
            missing += [str(command) for word in named if word != "-" and not (REPOSITORY / word).exists()]
        elif program == "python" and rest[0] == "-m":
            missing += [str(command)] if importlib.util.find_spec(rest[1]) is None else []
        elif "/" in program and not program.startswith(".venv/") and not os.access(REPOSITORY / program, os.X_OK):
            missing.append(str(command))
    assert not missing, "\n".join(missing)


@pytest.fixture
def place(tiny: TinyWorld, tmp_path: Path, clean_redis: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which the folders that the manual names exist."""
    for command in MANUAL:
        for word in command.words:
            if found := re.match(r"(?:/srv/degre/)?(runs/[\w-]+)", word):
                folder = tmp_path / found[1]
                folder.mkdir(parents=True, exist_ok=True)
                if not (folder / "data").exists():
                    shutil.copytree(tiny.dataset, folder / "data")
                    (folder / "bundle").symlink_to(tiny.bundle.path)
                    (folder / "request.json").write_text(REQUEST)
    shutil.copytree(tiny.dataset, tmp_path / "data" / "mine")
    (tmp_path / "request.json").write_text(REQUEST)
    shutil.copy(REPOSITORY / "deploy" / "degre.yaml", tmp_path / "degre.yaml")
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEGRE_REDIS__URL", clean_redis)
    return tmp_path


def test_the_cheap_commands_run(
    place: Path,  # noqa: ARG001
    tiny: TinyWorld,
    clean_redis: str,
    http_server: HttpServer,
) -> None:
    """Each on its own: a champion serves, and where the command is one of a running experiment, one runs."""
    import redis

    lines = list(dict.fromkeys(command.words for command in MANUAL if is_run(command)))
    assert {resolve(degre_words(words) or ())[0][0] for words in lines} >= {
        "bundle",
        "rollout",
        "collect",
        "forget",
        "rerank",
    }
    with redis.Redis.from_url(clean_redis) as client, http_server(fake_engine(), clean_redis) as url:
        for words in lines:
            mine = degre_words(words) or ()
            path = resolve(mine)[0]
            client.flushdb()
            if path[0] == "rollout":
                activate(tiny.bundle.path, clean_redis)
            if path[0] == "rollout" and path[1] != "start":
                moves.start(client, tiny.bundle.path, Design(id="another"), Author(why="", by="test"))
            if path in {("rollout", "resume")}:
                moves.hold(client, Author(why="", by="test"), held=True)
            said = [
                re.sub(r"^(rediss?://[^ ]*|\$DEGRE_REDIS__URL)$", clean_redis, INSIDE.sub(outside, w)).replace(
                    SERVICE, url
                )
                for w in mine
            ]
            if path == ("rerank",) and "--url" not in said:
                said += ["--url", url]
            done = CliRunner().invoke(app, said)
            assert done.exit_code == 0, f"{shlex.join(words)}: {done.output} {done.exception}"


def test_what_is_asked_of_a_service_is_answered(clean_redis: str, http_server: HttpServer, tmp_path: Path) -> None:
    """Every `curl` that asks a service at its default address, as it stands, and the client's Python."""
    schema = parse_schema(SCHEMA.replace("discount", "price"))  # the example's candidates have a price
    asked = 0
    (tmp_path / "request.json").write_text(REQUEST)
    with http_server(fake_engine(bundle=FakeBundle(schema=schema)), clean_redis) as url:
        for command in MANUAL:
            if command.words[0] == "curl" and any(word.startswith(SERVICE) for word in command.words):
                words = [word.replace(SERVICE, url) for word in command.words]
                done = subprocess.run(
                    [*words, "--fail-with-body"], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False
                )
                assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
                asked += 1
        for block in blocks("python"):
            if "RerankClient" in block.text:
                exec(compile(block.text.replace(SERVICE, url), block.page, "exec"), {})
                asked += 1
    assert asked >= 4


def test_the_modules_that_are_run_by_name_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving.haproxy", str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("export RAY_SERVE_")
