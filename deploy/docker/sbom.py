"""A bill of materials (CycloneDX) and the list of licences of what the image carries: the package's dependencies, and theirs.

    python deploy/docker/sbom.py FOLDER TOOLS        writes sbom.json and licences.md into FOLDER

It asks the environment it runs in, which has the versions of constraints.txt, and leaves out what only development needs.
TOOLS holds cyclonedx-py and pip-licenses. They live in an environment of their own: a dependency of theirs, rfc3987-syntax,
is imported by jsonschema wherever it is installed, hence by every process of Ray, and builds a grammar for a second or two.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "degre-prod"


def closure(project: str = PROJECT) -> dict[str, str]:
    """Versions by name of everything that installing the project brings, the project left out."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(project, frozenset())]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # for another platform or another Python
        found[canonicalize_name(name)] = package.version
        for text in package.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in (*extras, "")):
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    del found[canonicalize_name(project)]
    return found


def cut(document: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The bill of an environment without what is not in `names`."""
    kept = [c for c in document["components"] if canonicalize_name(c["name"]) in names]
    references = {c["bom-ref"] for c in kept} | {document["metadata"].get("component", {}).get("bom-ref")}
    links = [
        d | ({"dependsOn": [r for r in d["dependsOn"] if r in references]} if "dependsOn" in d else {})
        for d in document.get("dependencies", [])
        if d["ref"] in references
    ]
    return document | {"components": kept, "dependencies": links}


def main(folder: Path, tools: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed = closure()
    whole = [
        tools / "cyclonedx-py",
        "environment",
        "--pyproject",
        "pyproject.toml",
        "--output-reproducible",
        sys.executable,
    ]
    bill = json.loads(subprocess.run(whole, check=True, capture_output=True, text=True).stdout)
    (folder / "sbom.json").write_text(json.dumps(cut(bill, set(needed)), indent=1) + "\n")
    listing = [
        tools / "pip-licenses",
        f"--python={sys.executable}",
        "--from=mixed",
        "--with-urls",
        "--packages",
        *sorted(needed),
    ]
    table = subprocess.run([*listing, "--format=markdown"], check=True, capture_output=True, text=True).stdout
    (folder / "licences.md").write_text(table)
    found = json.loads(subprocess.run([*listing, "--format=json"], check=True, capture_output=True, text=True).stdout)
    for licence, count in Counter(entry["License"] for entry in found).most_common():
        print(f"{count:4d}  {licence}", file=sys.stderr)
    print(
        json.dumps(
            {"packages": len(needed), "sbom": str(folder / "sbom.json"), "licences": str(folder / "licences.md")}
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
