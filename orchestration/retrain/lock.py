"""One retraining at a time in a run folder: a lock that dies with its process, and names who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from degre_prod.errors import MismatchError


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold the lock; raises MismatchError naming the holder's process and host while another one does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MismatchError(
                f"{file.parent.parent} is being retrained by {_holder(file)}; wait for it or stop it"
            ) from None
        _write(stream.fileno(), {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()})
        try:
            yield
        finally:
            _write(stream.fileno(), None)


def _write(handle: int, holder: dict[str, object] | None) -> None:
    os.ftruncate(handle, 0)
    if holder is not None:
        os.write(handle, json.dumps(holder).encode())


def _holder(file: Path) -> str:
    try:
        known = json.loads(file.read_text())
        return f"process {known['pid']} on {known['host']} since {known['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"  # which has just begun or is about to end


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
