"""Fields of a JSON schema as rows of a Markdown table."""

from __future__ import annotations

import json
from typing import Any

_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minLength": "{} or more characters",
    "maxLength": "{} characters at most",
    "minItems": "{} or more",
    "maxItems": "{} at most",
    "pattern": "matches `{}`",
}
_TYPES = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "null": "nothing"}


def kind_of(schema: dict[str, Any], link: bool = False) -> str:
    """The type in words: `integer`, `one of default, paper`, `list of text`; `link` makes a reference an anchor."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})" if link else name
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(kind_of(one, link) for one in schema["anyOf"] if one.get("type") != "null")
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of {kind_of(items, link)}" if items else "list"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"mapping to {kind_of(values, link)}" if isinstance(values, dict) else "mapping"
    if schema.get("format") == "password":
        return "secret text"
    if schema.get("format") in ("path", "date-time"):
        return {"path": "path", "date-time": "moment (ISO 8601)"}[schema["format"]]
    return _TYPES.get(schema.get("type", ""), "anything")


def bounds_of(schema: dict[str, Any]) -> str:
    """`≥ 0, ≤ 1`; empty without any."""
    parts = [schema, *schema.get("anyOf", [])]
    return ", ".join(text.format(_plain(part[key])) for part in parts for key, text in _BOUNDS.items() if key in part)


def default_of(schema: dict[str, Any], required: bool) -> str:
    """The default as YAML would have it; what is needed and what is absent by default say so."""
    if required:
        return "needed"
    value = schema.get("default")
    return "–" if value is None or value == [] else f"`{_plain(value)}`"


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def heading(*cells: str) -> list[str]:
    """The first two rows of a Markdown table."""
    return [row(*cells), "|" + "---|" * len(cells)]


def _plain(value: Any) -> str:
    return str(value) if isinstance(value, (str, float)) else json.dumps(value)
