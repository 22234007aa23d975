"""Killing `degre retrain` at a random moment of each step: the next start goes on there and makes the same rows and networks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from degre_prod.artefact import file_digest
from degre_prod.errors import TrainingError
from degre_prod.worlds.simulate import simulate
from orchestration.bench.dying import children

STEPS = (
    *("data gate", "validate", "training set", "encode", "evaluator", "evaluator gate", "mine", "generator"),
    *("bundle", "judge", "value gate", "bundle gate", "register"),
)
SMALL: dict[str, Any] = {
    "scaling": {"num_workers": 0},
    "evaluator": {"width": 8, "epochs": 2, "min_steps": 1, "togo_steps": 2, "prefix_state": "additive"},
    "mining": {"requests": 60, "beam_width": 2, "keep": 2, "shard_size": 20},
    "generator": {"width": 8, "epochs": 2},
    "judge": {"width": 8, "epochs": 1, "min_steps": 1},
    # Networks this small pass no real gate; whether gates hold is not the question here.
    "gates": {
        "min_requests": 100,
        "max_calibration_error": 1.0,
        "min_rank_quality": 0.0,
        "max_value_loss": 9.0,
        "max_latency_ratio": 99.0,
        "min_coverage_ratio": 0.0,
        "min_diversity_ratio": 0.0,
    },
}
_PATIENCE_S = 300.0


def kill_nights(folder: Path, kills: int, random: np.random.Generator, say: Callable[[str], None]) -> dict[str, Any]:
    """Kill a night once in each step in turn, `kills` times in all; a night of its own begins after every full turn."""
    simulate("mixed", "small", folder / "data", train=700, validation=50, test=50)
    whole = _run(folder / "whole", folder / "data")
    _night(whole, None, 0.0)
    wanted = _made(whole)
    seconds: dict[str, float] = wanted.pop("steps")
    same = resumed = True
    done: list[str] = []
    while len(done) < kills:
        run = _run(folder / f"killed-{len(done)}", folder / "data")
        # Evenly spread when there are fewer kills than steps.
        steps = STEPS if kills - len(done) >= len(STEPS) else _spread(kills - len(done))
        for step in steps:
            delay = float(random.uniform(0, seconds[step]))
            before = _recorded(run)
            if _night(run, step, delay) != -signal.SIGKILL:
                raise TrainingError(f"the night was to die in {step}; see {run}/said.txt")
            kept = {name for name, text in _recorded(run).items() if before.get(name) == text}
            resumed = resumed and kept == set(before)  # what had been done was not done again
            done.append(step)
            say(f"pipeline: {step}, after {delay:.2f} s; {len(_recorded(run))} steps were recorded")
        before = _recorded(run)
        if _night(run, None, 0.0) != 0:
            raise TrainingError(f"the night does not go on after its last kill; see {run}/said.txt")
        after, found = _recorded(run), _made(run)
        resumed = resumed and all(after[name] == text for name, text in before.items())
        found.pop("steps")
        same = same and found == wanted
    return {"kills": len(done), "same": same, "resumed": resumed, "steps": done, **wanted}


def _spread(count: int) -> tuple[str, ...]:
    return tuple(STEPS[int(i)] for i in np.linspace(0, len(STEPS) - 1, count + 2)[1:-1])


def _run(folder: Path, data: Path) -> Path:
    shutil.copytree(data, folder / "data")
    return folder


def _night(run: Path, step: str | None, delay_s: float) -> int:
    """A night in a process of its own; its exit code."""
    child = children().Process(target=_dying_night, args=(run, step, delay_s))
    child.start()
    child.join(_PATIENCE_S)
    if child.exitcode is None:
        child.kill()
        raise TrainingError(f"a night did not end within {_PATIENCE_S:g} s; see {run}/said.txt")
    return child.exitcode


def _dying_night(run: Path, step: str | None, delay_s: float) -> None:
    """The child's work: a night that is killed `delay_s` after `step` began."""
    import sys

    from degre_prod.config import load_settings
    from orchestration.retrain import journal
    from orchestration.retrain.pipeline import retrain
    from orchestration.run import open_run

    sys.stdout = sys.stderr = (run / "said.txt").open("a")
    taken = journal.Journal.step

    def dying(self: Any, name: str, *args: Any, **named: Any) -> Any:
        if name == step:
            timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        return taken(self, name, *args, **named)

    journal.Journal.step = dying  # type: ignore[method-assign]
    outcome = retrain(open_run(run, load_settings(None, SMALL)))
    if step is not None:
        threading.Event().wait(_PATIENCE_S)  # the step was over sooner than last time; the kill is on its way
    if outcome.status != "done":
        raise TrainingError(f"the night ended as {outcome.status}: {outcome.reason}")


def _recorded(run: Path) -> dict[str, str]:
    """The records of finished steps, by step."""
    return {file.stem: file.read_text() for file in run.glob("retrain/[0-9]*/steps/*.json")}


def _made(run: Path) -> dict[str, Any]:
    """Hash of the training rows, of the networks and the mined lists; and the seconds of each step."""
    (night,) = run.glob("retrain/[0-9]*-*")
    outcome = json.loads((night / "outcome.json").read_text())
    shards = [file_digest(file) for file in sorted((night / "mined").glob("shard-*"))]
    return {
        "rows_sha256": outcome["training_rows"],
        "evaluator": file_digest(night / "evaluator" / "evaluator.safetensors"),
        "generator": file_digest(night / "generator" / "generator.safetensors"),
        "mined": shards,
        "steps": outcome["steps"],
    }
