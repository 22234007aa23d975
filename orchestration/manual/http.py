"""docs/http-reference.md, from the OpenAPI document of the service."""

from __future__ import annotations

from typing import Any

from orchestration.manual.tables import bounds_of, default_of, heading, kind_of, row

_INTRODUCTION = """\
# HTTP reference

Made from the service's OpenAPI document (`/openapi.json`) by `make docs`. How the parts are meant, with examples: [http.md](http.md).
"""


def http_page() -> str:
    """The page as Markdown: each operation with its answers, then each kind of document."""
    document = openapi()
    lines = [_INTRODUCTION, "## Operations", ""]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += _operation(f"{method.upper()} {path}", operation)
    lines += ["## Documents", ""]
    for name, schema in document["components"]["schemas"].items():
        lines += _document(name, schema)
    return "\n".join(lines).rstrip() + "\n"


def openapi() -> dict[str, Any]:
    """The OpenAPI document, of an application that is never started."""
    from pydantic import SecretStr

    from degre_prod.config import RedisConfig, Settings
    from serving.app import create_app

    def never() -> Any:
        raise NotImplementedError("the application is only described")

    settings = Settings(redis=RedisConfig(url=SecretStr("redis://127.0.0.1:6379/0")))
    document: dict[str, Any] = create_app(never, settings).openapi()
    return document


def _operation(title: str, operation: dict[str, Any]) -> list[str]:
    lines = [f"### {title}", "", operation.get("description", operation.get("summary", "")), ""]
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        lines += ["Takes " + ", ".join(f"{kind_of(b['schema'], link=True)} (`{m}`)" for m, b in body.items()) + ".", ""]
    parameters = operation.get("parameters", [])
    if parameters:
        lines += heading("parameter", "in", "type", "")
        lines += [row(f"`{p['name']}`", p["in"], kind_of(p["schema"]), p.get("description", "")) for p in parameters]
        lines.append("")
    lines += heading("status", "answer", "")
    for status, answer in operation["responses"].items():
        kinds = ", ".join(
            f"{kind_of(b['schema'], link=True)} (`{m}`)" if b.get("schema") else f"`{m}`"
            for m, b in answer.get("content", {}).items()
        )
        headers = ", ".join(f"`{name}`" for name in answer.get("headers", {}))
        said = answer.get("description", "") + (f"; header {headers}" if headers else "")
        lines.append(row(str(status), kinds, said))
    return [*lines, ""]


def _document(name: str, schema: dict[str, Any]) -> list[str]:
    lines = [f"### {name}", "", schema.get("description", "").replace("\n", " "), ""]
    fields = schema.get("properties", {})
    if not fields:
        return [*lines, kind_of(schema, link=True), ""]
    lines += heading("field", "type", "default", "meaning")
    lines += [
        row(
            f"`{field}`",
            ", ".join(part for part in (kind_of(info, link=True), bounds_of(info)) if part),
            default_of(info, field in schema.get("required", [])),
            info.get("description", ""),
        )
        for field, info in fields.items()
    ]
    return [*lines, ""]
