"""From a plan's arm to its bundle: fetched, verified, warmed up."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from degre_prod.errors import BundleError
from serving.plan import PlanArm

if TYPE_CHECKING:
    from degre_prod.bundle import Bundle


def fetch_local(uri: str) -> Path:
    """The folder that a path or file:// URI names; raises BundleError when it cannot be had."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        raise BundleError(f"{uri}: a path or a file:// URI on this machine is needed")
    path = Path(unquote(parts.path) if parts.scheme else uri)
    if not path.is_absolute():
        raise BundleError(f"{uri}: an absolute path is needed, for replicas run in folders of their own")
    if not path.is_dir():
        raise BundleError(f"{uri}: there is no such folder")
    return path


def load_arm(arm: PlanArm) -> Bundle:
    """An arm's bundle; raises BundleError unless it is the one the plan means, whole, its recorded answers confirmed."""
    from degre_prod.bundle import load_bundle
    from degre_prod.bundle.manifest import MANIFEST

    folder = fetch_local(arm.bundle_uri)
    try:
        found = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"{folder} is not a bundle: {error}") from error
    if found != arm.manifest_sha256:
        raise BundleError(f"{folder}: its manifest has sha256 {found}, the plan says {arm.manifest_sha256}")
    bundle = load_bundle(folder)
    if bundle.manifest_sha256 != arm.manifest_sha256:
        raise BundleError(f"{folder} was replaced while it was loaded")
    return bundle
