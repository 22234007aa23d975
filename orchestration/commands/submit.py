"""`degre submit`: a command of ours as a job on a Ray cluster."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer


def submit(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND RUN …", help="the job: a command and its own arguments")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="job server, http://HEAD:8265; default: the variable RAY_ADDRESS")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="configuration file (YAML), sent with the job", exists=True, dir_okay=False)
    ] = None,
    job_id: Annotated[
        str | None, typer.Option("--id", help="submission id; default: from the command and the configuration")
    ] = None,
    wait: Annotated[bool, typer.Option(help="show the job's log until it is over")] = True,
    cancel: Annotated[bool, typer.Option("--cancel", help="stop the job instead")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document as the last line")] = False,
) -> None:
    """Run a command on a Ray cluster; the same line finds the running job again and shows its log from the beginning.

    Options of `submit` come before the command. An interruption leaves the job running. Without --id a command whose last
    job is over gets a new one; with --id there is never a second one on this cluster. The exit code is the command's.

    Example: degre submit --config degre.yaml retrain /srv/degre/run
    """
    from degre_prod.errors import ConfigurationError, JobError
    from orchestration.jobs.cluster import job_server
    from orchestration.jobs.command import checked_id, job_command

    command = job_command(words, config) if words else None
    if command is None and job_id is None:
        raise ConfigurationError("which job? a command, e.g. `degre submit retrain /srv/degre/run`, or --id")
    job_id = checked_id(job_id) if job_id else None
    server = job_server(address)
    if os.environ.get("RAY_AUTH_MODE") != "token":
        say(f"warning: {server.address} takes jobs from anybody; start its nodes with RAY_AUTH_MODE=token")
    started = False
    if cancel and command is not None:
        job_id = job_id or server.latest(command)
    elif command is not None:
        job_id, started = server.start(command, job_id)
    if job_id is None or (job := server.find(job_id)) is None:
        raise JobError(f"{server.address} knows no such job{'' if job_id is None else f': {job_id}'}")
    if cancel:
        job = server.cancel(job_id)
    else:
        say(f"{job_id}: {'submitted' if started else f'found, {job.status.lower()}'}")
        if wait:
            try:
                job = server.follow(job_id, lambda text: print(text, end="", file=sys.stderr, flush=True))
            except KeyboardInterrupt:
                say(f"{job_id} goes on; --cancel stops it")
                raise
    said = server.log(job_id) if job.over else ""
    document: dict[str, Any] = {
        **asdict(job),
        "message": reason(job.message),
        "submitted": started,
        "result": result(said),
    }
    typer.echo(json.dumps(document) if as_json else f"{job.id}: {job.status.lower()} after {job.seconds:g} s")
    if job.status == "FAILED":
        say(f"{job.id} failed: {document['message']}")
        raise typer.Exit(job.exit_code or 1)
    if job.status == "STOPPED" and not cancel:
        raise JobError(f"{job.id} was stopped; the same line submits the command again")


def result(log: str) -> Any:
    """The JSON document that a job's `--json` left as its last line; None without one."""
    for line in reversed(log.splitlines()):
        if line.strip():
            try:
                document = json.loads(line)
            except ValueError:
                return None
            return document if isinstance(document, dict) else None
    return None


def reason(message: str) -> str:
    """One line of what the cluster says about a job: our own last word in it, else its beginning."""
    lines = message.strip().splitlines() or [""]
    ours = [line.removeprefix("degre: ") for line in lines if line.startswith("degre: ")]
    return ours[-1] if ours else lines[0].split(", last available logs")[0]


def say(text: str) -> None:
    """A line for people."""
    print(f"degre: {text}", file=sys.stderr)
