"""RFC 9457 problem documents: every error the service answers with."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from degre_prod.errors import DegreError

MEDIA_TYPE = "application/problem+json"
MAX_FIELD_ERRORS = 20
PROXY_STATUSES = (502, 503, 504)  # HAProxy's own, when no replica has answered
RETRY_STATUSES = (429, *PROXY_STATUSES)  # with Retry-After
_SOON = {"Retry-After": "1"}
# pydantic puts the tried branches of a union (an id is an int or a string) into the location; they are no fields.
_UNION_BRANCHES = ("int", "str", "float", "constrained-int", "constrained-str", "constrained-float")


@dataclass(frozen=True, slots=True)
class FieldError:
    """`field`: path such as `candidates[3].id`."""

    field: str
    message: str


class Problem(DegreError):  # noqa: N818 - what RFC 9457 calls it
    """A request that is answered with an error status instead of a list."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.detail, self.errors, self.headers = status, detail, tuple(errors), dict(headers or {})
        super().__init__(detail)

    def document(self) -> dict[str, Any]:
        """The problem document as a dictionary."""
        document: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            document["errors"] = [{"field": e.field, "message": e.message} for e in self.errors]
        return document

    def body(self) -> bytes:
        """The problem document as JSON."""
        return json.dumps(self.document(), allow_nan=False).encode()


def invalid(errors: Iterable[FieldError]) -> Problem:
    """422 naming each field at fault (the first MAX_FIELD_ERRORS)."""
    listed = list(errors)[:MAX_FIELD_ERRORS]
    return Problem(422, "; ".join(f"{e.field}: {e.message}" for e in listed), errors=listed)


def invalid_field(field: str, message: str) -> Problem:
    """422 for one field."""
    return invalid([FieldError(field, message)])


def unavailable(detail: str) -> Problem:
    """503 with Retry-After."""
    return Problem(503, detail, headers=_SOON)


def overloaded(detail: str) -> Problem:
    """429 with Retry-After."""
    return Problem(429, detail, headers=_SOON)


def unanswered(status: int) -> Problem:
    """What HAProxy answers with one of PROXY_STATUSES."""
    return Problem(status, "no replica has answered", headers=_SOON)


def from_validation(error: ValidationError, model: type[BaseModel]) -> Problem:
    """400 for a body that is not JSON, 413 for too many candidates, else 422 with the fields named.

    `model`: what the body was to be; a field that it hasn't is answered with those that it has.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON: {found[0]['msg']}")
    if any(item["type"] == "too_long" and item["loc"] == ("candidates",) for item in found):
        return Problem(413, "candidates: more than any bundle takes")
    messages: dict[str, list[str]] = {}
    for item in found:
        heard = messages.setdefault(field_path(item["loc"]), [])
        message = _no_such_field(item["loc"], model) if item["type"] == "extra_forbidden" else item["msg"]
        if message not in heard:
            heard.append(message)
    return invalid(FieldError(field, " or ".join(heard)) for field, heard in messages.items())


def _no_such_field(location: Sequence[int | str], model: type[BaseModel]) -> str:
    *above, name = location
    for part in above:
        nested = _models(model.model_fields[part].annotation) if part in model.model_fields else []
        model = nested[0] if nested else model
    names = list(model.model_fields)
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"no such field; did you mean {near[0]}?" if near else f"no such field; there are {', '.join(names)}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Those inside an annotation such as list[Candidate] | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def field_path(location: Sequence[int | str]) -> str:
    """`("candidates", 3, "id", "int")` → `candidates[3].id`; the whole body is `body`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _UNION_BRANCHES:
            path += f".{part}" if path else part
    return path or "body"
