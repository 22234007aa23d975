"""docs/configuration.md, from the settings tree."""

from __future__ import annotations

from typing import Any

from degre_prod.config import PAPER, Settings
from orchestration.manual.tables import bounds_of, default_of, heading, kind_of, row

_INTRODUCTION = """\
# Configuration

Made from `degre_prod/config.py` by `make docs`. One tree: defaults, over them one YAML file (`--config`), over it the environment,
over that what a command was told explicitly. A wrong key or value is an error that names it, and the nearest keys there are.

```yaml
serving:
  deadline_ms: 50
```

`DEGRE_` and the key, with `__` for each dot, sets the same in the environment: `DEGRE_SERVING__DEADLINE_MS=50`. A list is given as
JSON: `DEGRE_SERVING__TOKENS='["first", "second"]'`. Units are in the names. Secrets (`redis.url`, `serving.tokens`) belong in the
environment.

Variables that are not ours and that matter: `RAY_ADDRESS`, `RAY_AUTH_MODE`, `RAY_AUTH_TOKEN` and `RAY_AUTH_TOKEN_PATH`
([cluster.md](cluster.md)), `RAY_SERVE_…` ([operations.md](operations.md)), `MLFLOW_TRACKING_URI` ([retraining.md](retraining.md)).
"""


def configuration_page() -> str:
    """The page as Markdown: a table a section, in the order of the tree."""
    schema = Settings.model_json_schema()
    sections = schema["$defs"]
    plain: dict[str, Any] = {}
    nested: dict[str, Any] = {}
    for name, info in schema["properties"].items():
        reference = info.get("$ref") or next((one["$ref"] for one in info.get("allOf", []) if "$ref" in one), None)
        (nested if reference else plain)[name] = sections[reference.rsplit("/", 1)[-1]] if reference else info
    lines = [_INTRODUCTION, *_table("", plain, []), ""]
    for name, section in nested.items():
        lines += [f"## {name}", "", section.get("description", ""), ""]
        lines += [*_table(f"{name}.", section["properties"], section.get("required", [])), ""]
    lines += [
        "## What `mode: paper` presets",
        "",
        "Where nothing else is set explicitly:",
        "",
        *heading("key", "value"),
    ]
    lines += [row(f"`{s}.{key}`", f"`{value}`") for s, keys in PAPER.items() for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _table(prefix: str, fields: dict[str, Any], required: list[str]) -> list[str]:
    rows = [
        row(
            f"`{prefix}{name}`",
            ", ".join(part for part in (kind_of(field), bounds_of(field)) if part),
            default_of(field, name in required),
            field.get("description", ""),
        )
        for name, field in fields.items()
    ]
    return [*heading("key", "type", "default", "meaning"), *rows]
