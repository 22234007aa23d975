"""Reading a request body no larger and no slower than allowed, before any of it is parsed."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from serving.problems import Problem, from_validation

BODY_SECONDS = 5.0

Model = TypeVar("Model", bound=BaseModel)


async def read_body(http: Request, max_bytes: int) -> bytes:
    """The body; raises a 413 Problem as soon as it is known to be longer than `max_bytes`, 408 after BODY_SECONDS.

    400 when the client goes away before its end: nobody hears it, but it is no error of ours.
    """
    declared = http.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in http.stream():
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
    except TimeoutError:
        raise Problem(408, f"the body had not arrived after {BODY_SECONDS:.0f} s") from None
    except ClientDisconnect:
        raise Problem(400, "the body ended before its Content-Length") from None
    return b"".join(parts)


def parse(model: type[Model], body: bytes) -> Model:
    """The body as `model`; raises Problem 400 (not JSON) or 422 (fields named)."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error, model) from None


def _too_large(max_bytes: int) -> Problem:
    return Problem(413, f"the body is larger than {max_bytes} bytes (serving.max_body_bytes)")
