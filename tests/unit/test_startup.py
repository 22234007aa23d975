"""What each process of Ray imports before it does anything."""

from __future__ import annotations

import importlib.util


def test_nothing_is_installed_that_makes_every_process_of_ray_start_later() -> None:
    """jsonschema, which `import ray` brings, imports rfc3987_syntax where it finds it: one to two seconds of building a
    grammar, in each of a dozen processes."""
    assert importlib.util.find_spec("ray") is not None
    assert importlib.util.find_spec("rfc3987_syntax") is None, (
        "a dependency in pyproject.toml brings jsonschema[format-nongpl], or .venv is older than this test: `make clean`"
    )
