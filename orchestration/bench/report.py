"""How every benchmark speaks: readable lines, or one JSON document last."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from typing import Any

import typer


def show(document: dict[str, Any], as_json: bool) -> None:
    """Print a benchmark's result; with `as_json` as one line of JSON."""
    if as_json:
        typer.echo(json.dumps(document))
        return
    for name, value in document.items():
        typer.echo(f"{name}: {json.dumps(value)}")


def machine() -> dict[str, Any]:
    """What the figures were read on."""
    packages = ("torch", "onnxruntime", "feast", "ray", "redis", "numpy")
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"
