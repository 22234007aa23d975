"""Keeping the Serve application deployed: what `serve deploy` does once, whenever the cluster does not have it.

A cluster that begins anew has no applications; one that failed to deploy is sent again. The state wanted is one document, the
cluster's own is asked for over Ray's dashboard.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import yaml

from degre_prod.artefact import digest
from degre_prod.config import load_settings
from degre_prod.errors import ConfigurationError, ServiceError

EVERY_S = 2.0
AGAIN_S = 20.0  # between two times of sending the same document: deploying takes that long
ANSWER_S = 10.0
SEAL = "STACK_SETTINGS_SHA256"
_PATH = "/api/serve/applications/"

Look = Literal["running", "deploying", "absent", "failed", "away"]


@dataclass(frozen=True)
class ServeApi:
    """Ray Serve's REST interface at `address`, `http://HEAD:8265`, asked with Ray's token where there is one."""

    client: httpx.Client

    def look(self, wanted: dict[str, Any]) -> tuple[Look, str]:
        """How the applications of a document do on the cluster, and what the cluster says of them."""
        try:
            answer = self.client.get(_PATH)
            answer.raise_for_status()
            found = answer.json()["applications"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403):
                raise ServiceError(
                    f"{self.client.base_url} does not know this token: RAY_AUTH_TOKEN", status=401
                ) from None
            return "away", f"{type(error).__name__}: {error}"
        states = {
            app["name"]: found.get(app["name"], {}).get("status", "NOT_STARTED") for app in wanted["applications"]
        }
        said = "; ".join(str(found[name].get("message") or "") for name in states if name in found)
        if all(state == "RUNNING" for state in states.values()):
            return "running", said
        if any(state in ("DEPLOY_FAILED", "UNHEALTHY") for state in states.values()):
            return "failed", said
        gone = any(state in ("NOT_STARTED", "DELETING") for state in states.values())
        return ("absent" if gone else "deploying"), said

    def send(self, wanted: dict[str, Any]) -> str | None:
        """Ask for a document; returns why it was not taken, None when it was."""
        try:
            answer = self.client.put(_PATH, json=wanted, timeout=60.0)
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        return None if answer.status_code == 200 else f"{answer.status_code}: {answer.text[:500]}"


def serve_api(address: str) -> ServeApi:
    """The interface at an address; the token is RAY_AUTH_TOKEN or in the file RAY_AUTH_TOKEN_PATH."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token and (file := os.environ.get("RAY_AUTH_TOKEN_PATH")):
        token = Path(file).read_text().strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return ServeApi(httpx.Client(base_url=address, headers=headers, timeout=ANSWER_S))


def read_document(file: Path) -> dict[str, Any]:
    """A document as `serve deploy` takes it; raises ConfigurationError."""
    try:
        document = yaml.safe_load(file.read_text())
        if [app["name"] for app in document["applications"]]:
            return dict(document)
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise ConfigurationError(f"{file}: {error}; a file for `serve deploy` is needed") from None
    raise ConfigurationError(f"{file}: no applications")


def with_settings(document: dict[str, Any], config: Path) -> dict[str, Any]:
    """The document with a hash of the nodes' configuration file in each application's environment.

    A cluster builds an application, and reads its settings, only when the document differs from the one before: without the
    hash a changed setting never reaches a replica. Raises ConfigurationError for a file that no replica could take.
    """
    load_settings(config)
    seal = {SEAL: digest(config.read_text())}
    applications = []
    for app in document["applications"]:
        environment = app.get("runtime_env") or {}
        variables = {**environment.get("env_vars", {}), **seal}
        applications.append({**app, "runtime_env": {**environment, "env_vars": variables}})
    return {**document, "applications": applications}


def keep_deployed(
    api: ServeApi,
    wanted: dict[str, Any],
    beats: Iterator[float],
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
    *,
    until_running: bool = False,
) -> Look:
    """Look at each beat (seconds on any clock), send the document once, and again when it is wanting.

    Ends with the beats, or when it runs; returns what the last look saw. Raises ServiceError when the cluster refuses the token.
    """
    sent: float | None = None
    before: Look | None = None
    now: Look = "away"
    for at in beats:
        now, said = api.look(wanted)
        if now != before:
            say(f"application: {now}{f' ({said.strip()[:300]})' if said.strip() else ''}")
            before = now
        if until_running and sent is not None and now == "running":
            return now
        due = sent is None or (now in ("absent", "failed") and at - sent >= AGAIN_S)
        if now == "away" or not due:
            continue
        refused = api.send(wanted)
        say(f"not taken: {refused}" if refused else "sent to the cluster")
        if refused is None or sent is not None:
            sent = at
    return now


def every(seconds: float = EVERY_S) -> Iterator[float]:
    """The clock, again and again."""
    while True:
        yield time.monotonic()
        time.sleep(seconds)
