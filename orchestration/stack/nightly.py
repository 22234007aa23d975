"""A scheduled `degre retrain` on the cluster. When the next one is due is told by what lies in the run folder, so that neither a
restart nor a machine that was off for a while makes a night too many or too few."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from degre_prod.bundle.manifest import MANIFEST
from degre_prod.errors import DegreError
from orchestration.jobs.cluster import Job, JobServer
from orchestration.jobs.command import JobCommand

AGAIN = timedelta(minutes=10)  # after a night that could not be held, as when the cluster is away
_NAP_S = 60.0


def due(run: Path, every: timedelta) -> datetime:
    """When the next night is due: `every` after the last one ended, or after the first bundle was made. At once without either."""
    from orchestration.retrain.state import State

    ended = [o.ended for o in State(run / "retrain").outcomes() if o.ended]
    if ended:
        return datetime.fromisoformat(ended[-1]) + every
    manifest = run / "bundle" / MANIFEST
    if manifest.is_file():
        return datetime.fromtimestamp(manifest.stat().st_mtime, UTC) + every
    return datetime.min.replace(tzinfo=UTC)


def nights(
    run: Path,
    every: timedelta,
    hold: Callable[[], bool],
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[datetime]:
    """`hold` a night whenever one is due; yields when the next one is. A night with nothing new leaves no trace, so one that
    went well is never due again before `every` has passed."""
    earliest = datetime.min.replace(tzinfo=UTC)
    while True:
        at = max(due(run, every), earliest)
        while (left := (at - clock()).total_seconds()) > 0:
            wait(min(left, _NAP_S))
        began = clock()
        earliest = began + every if hold() else clock() + AGAIN
        yield max(due(run, every), earliest)


def submit_night(
    server: Callable[[], JobServer],
    words: tuple[str, ...],
    write: Callable[[str], None] = lambda text: print(text, end="", file=sys.stderr, flush=True),
) -> bool:
    """Run `degre retrain …` as a job and follow it; whether it came to an end of its own, a gate that does not hold included."""
    try:
        jobs = server()
        job_id, started = jobs.start(JobCommand(words))
        write(f"degre: {job_id}: {'submitted' if started else 'found'}\n")
        job: Job = jobs.follow(job_id, write)
    except DegreError as error:
        write(f"degre: {error}; tried again in {AGAIN}\n")
        return False
    from orchestration.commands.retrain import STOPPED

    return job.status == "SUCCEEDED" or job.exit_code == STOPPED
