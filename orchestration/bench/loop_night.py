"""A night: `degre retrain` as a process of its own, which is given a run folder and a Redis, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from degre_prod.errors import TrainingError

_PROGRAM: Final = "from orchestration.cli import main; main()"
_TAIL = 2000


def retrain(run: Path, redis_url: str, config: Path, said: Path) -> dict[str, Any]:
    """The night's outcome, as `degre retrain --json` prints it; what it says besides goes to the file `said`.

    A night that a gate stopped is an outcome like any other. Raises TrainingError when there is none.
    """
    command = [sys.executable, "-c", _PROGRAM, "retrain", str(run), "--activate", "--config", str(config), "--json"]
    environment = os.environ | {"DEGRE_REDIS__URL": redis_url}  # not an argument: it holds a password
    with said.open("ab") as log:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    lines = done.stdout.strip().splitlines()
    try:
        outcome = json.loads(lines[-1])
        return {**outcome, "status": outcome["status"]}
    except (IndexError, ValueError, KeyError, TypeError):
        tail = said.read_text(errors="replace")[-_TAIL:]
        raise TrainingError(f"degre retrain {run} ended with {done.returncode} and no outcome: {tail}") from None
