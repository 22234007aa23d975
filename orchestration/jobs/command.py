"""What is submitted: a command line of `degre`, perhaps a configuration file, and the id both give the job.

The cluster's image carries the project and its nodes' environment the secrets; all that travels with a job is the one
configuration file. The run folder is the cluster's: a path that every node sees.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from degre_prod.artefact import digest
from degre_prod.config import load_settings
from degre_prod.errors import ConfigurationError

JOBS = ("retrain", "mine", "train evaluator", "train generator", "evaluate")
CARRIED = "degre.yaml"  # the configuration's name in the job's working directory
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class JobCommand:
    """`degre` and these words, with the text of a configuration file beside them."""

    words: tuple[str, ...]
    config: str | None = None

    @property
    def entrypoint(self) -> str:
        """The shell command that the job runs."""
        carried = () if self.config is None else ("--config", CARRIED)
        return shlex.join(("degre", *self.words, *carried))

    @property
    def stem(self) -> str:
        """What the ids of this command's jobs begin with: of the same words and the same configuration."""
        return f"degre-{self.words[0]}-{digest(self.words, self.config)[:12]}"


def job_command(words: list[str], config: Path | None) -> JobCommand:
    """Checked as far as can be told from here; raises ConfigurationError."""
    job = next((known for known in JOBS if words[: len(known.split())] == known.split()), None)
    if job is None:
        raise ConfigurationError(f"`{' '.join(words[:2])}` is no job; one of: {', '.join(JOBS)}")
    rest = words[len(job.split()) :]
    if not rest or not rest[0].startswith("/"):
        raise ConfigurationError(
            f"`{job}` runs on the cluster: right after it comes the run folder as an absolute path that every node sees, "
            f"e.g. `degre submit {job} /srv/degre/run`{f', not {rest[0]!r}' if rest else ''}"
        )
    if config is None:
        return JobCommand(tuple(words))
    if any(word == "--config" or word.startswith("--config=") for word in rest):
        raise ConfigurationError(
            f"two configurations: --config before `{job}` sends a file, after it names the cluster's"
        )
    load_settings(config)  # a wrong key is found here, not on the cluster
    return JobCommand(tuple(words), config.read_text())


def checked_id(text: str) -> str:
    """A submission id as Ray and file names take it; raises ConfigurationError."""
    if not _ID.fullmatch(text):
        raise ConfigurationError(f"{text!r} is no submission id: letters, digits, `.`, `_` and `-`, 128 at most")
    return text


@contextmanager
def runtime_env(command: JobCommand) -> Iterator[dict[str, Any]]:
    """Ray's runtime environment of the job: the configuration as its working directory, else nothing."""
    if command.config is None:
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CARRIED).write_text(command.config)
        yield {"working_dir": folder}
