"""`degre serve` in the foreground and `degre rerank`, as a person would run them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tiny_bundle import TinyWorld

from orchestration.bench.bed import replica_pids

DEGRE = [sys.executable, "-c", "from orchestration.cli import main; main()"]
ROOT = Path(__file__).parents[2]
REQUEST = json.dumps({"user_id": 1, "candidates": [{"id": 3}, {"id": 4}, {"id": 5}], "length": 2, "deadline_ms": 5000})


def rerank(url: str, *options: str, text: str = REQUEST) -> subprocess.CompletedProcess[str]:
    command = [*DEGRE, "rerank", "--url", url, *options]
    return subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, check=False)


def members(group: int) -> list[str]:
    """Command lines of the processes whose session or process group is `group`."""
    out = subprocess.run(["ps", "-ww", "-eo", "sid,pgid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in out.splitlines()[1:]]
    return [args for sid, pgid, args in rows if str(group) in (sid, pgid)]


def test_serve_until_ctrl_c(tiny: TinyWorld) -> None:
    environment = os.environ | {"DEGRE_SERVING__REDIS_TIMEOUT_MS": "2000"}
    server = subprocess.Popen(
        [*DEGRE, "serve", str(tiny.bundle.path), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    try:
        assert server.stdout is not None
        found = re.match(r"Ready: (http://127\.0\.0\.1:\d+)", server.stdout.readline())
        assert found is not None
        answer = json.loads(rerank(found[1], "--json").stdout)
        assert (answer["source"], len(answer["items"])) == ("generator", 2)
        assert answer["degraded"] == ["unknown_user", "unknown_items:3"]
        # Ray's default is 15: whatever else computes on the machine would go before every request.
        ours = os.getpriority(os.PRIO_PROCESS, server.pid)
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in replica_pids()] == [ours]
        refused = rerank(found[1], text=REQUEST.replace("3", '"three"', 1))
        assert refused.returncode == 2
        assert "candidates[0].id" in refused.stderr
        # As a terminal does it: Ctrl-C reaches every process of the group at once.
        os.killpg(server.pid, signal.SIGINT)
        _, told = server.communicate(timeout=60)
    finally:
        server.kill()
        server.wait()
    assert server.returncode == 0
    assert "no user or item has any" in told
    assert "Traceback" not in told
    assert members(server.pid) == []
    away = rerank(found[1])
    assert (away.returncode, away.stdout.splitlines()[0].split()[1]) == (0, "client_fallback")


def test_a_request_that_is_none_names_the_field(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text('{"user_id": 1, "candidates": []}')
    out = rerank("http://127.0.0.1:1", "--file", str(file))
    assert out.returncode == 2
    assert "candidates: " in out.stderr
    assert "request.json" in out.stderr
