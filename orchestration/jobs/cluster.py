"""A cluster's job server: start a job or find it again, follow it, stop it. Ray's errors become ours.

A job belongs to the cluster: it goes on when whoever submitted it is gone. Ray takes an id once, so two submitters at the
same moment get one job.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from degre_prod.errors import ConfigurationError, ServiceError
from orchestration.jobs.command import JobCommand, runtime_env
from serving.cluster import environment

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
PATIENCE_S = 60.0  # how long a job server that has answered before may be away
_PAUSE_S = 0.5
_REQUEST_S = 30.0  # of one request; Ray's client would wait for ever
_CHATTY = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
_QUIET_S = 60.0  # without a word from the log before it is asked for anew: the connection may be dead


@dataclass(frozen=True)
class Job:
    """What the cluster says of a job; seconds are from its start to its end or to now, the exit code is its command's."""

    id: str
    status: str
    entrypoint: str
    message: str
    seconds: float
    exit_code: int | None

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in TERMINAL


class JobServer:
    """The job server at an address; raises ServiceError when it cannot be reached or refuses."""

    def __init__(self, address: str) -> None:
        self.address = address
        with _ours(address), environment({"RAY_ADDRESS": address}):  # Ray's variable wins over its argument
            self._client = _client(address)

    def find(self, job_id: str) -> Job | None:
        """The job of this id."""
        return next((job for job in self.jobs() if job.id == job_id), None)

    def jobs(self) -> list[Job]:
        """Every submitted job that this cluster remembers."""
        with _ours(self.address):
            return [_job(info) for info in self._client.list_jobs() if info.submission_id]

    def start(self, command: JobCommand, job_id: str | None = None) -> tuple[str, bool]:
        """The id of the command's job, and whether this call started it.

        With an id: that one job, whatever became of it. Without: the command's job that is not over, else a new one. Raises
        ConfigurationError when the id belongs to another command.
        """
        if job_id is None:
            tries = self._tries(command)
            last = max(tries, default=0)
            if last and not tries[last].over:
                return tries[last].id, False
            job_id = f"{command.stem}-{last + 1}"
        known = self.find(job_id)
        if known is None:
            try:
                with _ours(self.address), runtime_env(command) as env:
                    self._client.submit_job(entrypoint=command.entrypoint, submission_id=job_id, runtime_env=env)
                return job_id, True
            except ServiceError:
                known = self.find(job_id)
                if known is None:
                    raise
        if known.entrypoint != command.entrypoint:
            raise ConfigurationError(f"{job_id} is another job, `{known.entrypoint}`; choose another --id")
        return job_id, False

    def latest(self, command: JobCommand) -> str | None:
        """The id of the command's last job without an id of its own."""
        tries = self._tries(command)
        return tries[max(tries)].id if tries else None

    def follow(self, job_id: str, write: Callable[[str], None]) -> Job:
        """Pass on the job's log from its beginning until it is over; a lost connection is taken up where it broke."""
        seen, answered = 0, time.monotonic()
        while True:
            try:
                job = self._get(job_id)
                answered = time.monotonic()
                for text, place in self._log(job_id):
                    write(text[max(seen - place, 0) :])
                    seen = max(seen, place + len(text))
                    answered = time.monotonic()
                job = self._get(job_id)
                if job.over:
                    return job
            except ServiceError as error:
                if time.monotonic() - answered > PATIENCE_S:
                    raise ServiceError(f"{error}; {job_id} may go on, look again with `--id {job_id}`") from error
            time.sleep(_PAUSE_S)

    def cancel(self, job_id: str) -> Job:
        """Ask the job to stop and wait until it has; one that is over is left alone."""
        job = self._get(job_id)
        if job.over:
            return job
        with _ours(self.address):
            self._client.stop_job(job_id)
        deadline = time.monotonic() + PATIENCE_S
        while not job.over:
            if time.monotonic() > deadline:
                raise ServiceError(f"{job_id} was asked to stop and is still {job.status} after {PATIENCE_S:g} s")
            time.sleep(_PAUSE_S)
            job = self._get(job_id)
        return job

    def log(self, job_id: str) -> str:
        """All that the job has written."""
        with _ours(self.address):
            return str(self._client.get_job_logs(job_id))

    def _tries(self, command: JobCommand) -> dict[int, Job]:
        return {number: job for job in self.jobs() if (number := _attempt(job.id, command.stem))}

    def _get(self, job_id: str) -> Job:
        with _ours(self.address):
            return _job(self._client.get_job_info(job_id))

    def _log(self, job_id: str) -> Iterator[tuple[str, int]]:
        """Pieces of the log as they come, each with its place in it."""
        tail = self._client.tail_job_logs(job_id)
        place = 0
        with asyncio.Runner() as loop:
            while True:
                with _ours(self.address):
                    text = loop.run(_next(tail))
                if text is None:
                    return
                yield text, place
                place += len(text)


def job_server(address: str | None) -> JobServer:
    """The one at the address given, else at RAY_ADDRESS; raises ConfigurationError where there is neither."""
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigurationError("which cluster? --address http://HEAD:8265, or RAY_ADDRESS")
    if not address.startswith(("http://", "https://")):
        raise ConfigurationError(f"jobs go to a job server, http://HEAD:8265 or https://…, not to {address!r}")
    return JobServer(address.rstrip("/"))


def _client(address: str) -> JobSubmissionClient:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Impatient(JobSubmissionClient):  # type: ignore[misc]
        def _do_request(self, method: str, endpoint: str, **rest: Any) -> Any:
            try:
                return super()._do_request(method, endpoint, timeout=_REQUEST_S, **rest)
            except AuthenticationError as error:
                raise PermissionError(endpoint) from error

    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return Impatient(address)


async def _next(tail: AsyncIterator[str]) -> str | None:
    """The next piece; None at the end, or when nothing has come for long."""
    try:
        return await asyncio.wait_for(anext(tail, None), _QUIET_S)
    except TimeoutError:
        return None


def _attempt(job_id: str, stem: str) -> int:
    """The number in an id of ours, 0 in any other."""
    number = job_id.removeprefix(f"{stem}-")
    return int(number) if number != job_id and number.isdigit() else 0


def _job(info: Any) -> Job:
    now = time.time() * 1000
    return Job(
        id=str(info.submission_id),
        status=str(info.status.value),
        entrypoint=str(info.entrypoint),
        message=str(info.message or ""),
        seconds=round(max((info.end_time or now) - (info.start_time or now), 0) / 1000, 1),
        exit_code=info.driver_exit_code,
    )


@contextmanager
def _ours(address: str) -> Iterator[None]:
    """Whatever Ray's client raises, as a ServiceError."""
    from aiohttp import ClientError
    from requests import RequestException

    try:
        yield
    except PermissionError as error:
        given = "RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) are needed here too"
        raise ServiceError(f"{address} does not know you: {given}", status=401) from error
    except (RequestException, ClientError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ServiceError(f"the job server at {address} cannot be reached or refuses: {reason}") from error
