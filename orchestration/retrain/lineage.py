"""Where a bundle comes from: the code and the data partitions it was made by and from."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from degre_prod import __version__
from degre_prod.artefact import digest

_MAX_TAG = 4000  # characters; MLflow takes 5,000


def code_version() -> str:
    """The package's version, and the commit where the package lies in a git checkout: `0.1.0+g1a2b3c4d5e6f`, with
    `.changed` when files differ from it."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return __version__
    command = ["git", "-C", str(source), "describe", "--always", "--abbrev=12", "--dirty=.changed", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+g{found}"


def data_lineage(partitions: Mapping[str, str], inputs: Path) -> dict[str, str]:
    """Tags that name the data: one hash over all, how many there are, the file that lists them, and the list where it fits."""
    listed = json.dumps(dict(partitions), sort_keys=True)
    tags = {
        "data_sha256": digest(dict(partitions)),
        "data_partitions": str(len(partitions)),
        "data_inputs": inputs.absolute().as_uri(),
    }
    return tags | {"data_files": listed} if len(listed) <= _MAX_TAG else tags
