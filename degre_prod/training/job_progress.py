"""What people see of the worker group: a bar, or lines in a log, and the seconds each job took."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from degre_prod.training.launch import Job

LOOK_S = 0.3  # between two looks at the workers' progress
LINE_S = 10.0  # between two lines of progress, where standard error is a log


@contextmanager
def progress_bar(jobs: Sequence[Job]) -> Iterator[dict[str, float]]:
    """Show on stderr how far the first job is that is not done, as the sum of the workers' progress, while the block runs: a
    bar, or lines where nobody sees a bar move. Fills in the seconds each job took, by label; the last takes until the block ends.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    began: list[float] = []  # of each job
    seconds: dict[str, float] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True) as bar:

        def follow() -> None:
            for job in jobs:
                began.append(time.monotonic())
                line = bar.add_task(job.label, total=None, text="starting workers" if job is jobs[0] else "")
                last, due, over = "", 0.0, False
                while not over:
                    over = stop.wait(LOOK_S) or job.done()
                    if not (reports := _reports(job.folder)):
                        continue
                    done, total = (sum(r[name] for r in reports) for name in ("done", "total"))
                    text = _told(reports, bar.tasks[0].speed)
                    bar.update(line, completed=done, total=total, text=text)
                    now = f"{job.label}: {done:,.0f} of {total:,.0f}, {text}"
                    if not console.is_terminal and now != last and (over or time.monotonic() >= due):
                        print(now, file=sys.stderr, flush=True)
                        last, due = now, time.monotonic() + LINE_S
                bar.remove_task(line)
                seconds[job.label] = round(time.monotonic() - began[-1], 2)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield seconds
        finally:
            stop.set()
            thread.join()
            seconds[jobs[-1].label] = round(time.monotonic() - began[-1], 2)


def _told(reports: list[dict[str, Any]], speed: float | None) -> str:
    """The reports' texts, and the speed where they have a unit; `speed` is the group's, a second, over the last half minute."""
    unit = reports[0]["unit"]
    rate = f"{speed:,.0f} {unit}/s" if unit and speed is not None else ""
    texts = " · ".join(dict.fromkeys(str(report["text"]) for report in reports))
    return ", ".join(part for part in (rate, texts) if part)


def _reports(folder: Path) -> list[dict[str, Any]]:
    """What every worker told last; nothing where the folder was published a moment ago."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith("progress-"))
    except FileNotFoundError:
        return []
    return [report for name in names if (report := _read(folder / name))]


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return None  # replaced at this moment; the next look sees it
