"""Who may use the console: a configured bearer token, given once in a form, opens a session in a cookie.

The cookie is signed, not looked up: its key is derived from the token it was opened with, so that it holds on every replica
that knows the token, while Redis is away (when people most want to look), and ends when the token is withdrawn. What a
signature cannot do is forget: whoever logs out leaves a note in Redis until the cookie would have expired anyway.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from pydantic import SecretStr

SESSION_S = 8 * 3600  # a working day; not prolonged
GUESSES, GUESSES_S = 10, 60.0
WRONG_S = 0.5  # how long a wrong token waits for its answer

_SALT = b"degre console session 1"


@dataclass(frozen=True, slots=True)
class Session:
    """`value`: the cookie. `name`: what it is called in Redis once it is closed. `expires`: seconds since 1970."""

    value: str
    expires: int

    @property
    def name(self) -> str:
        """A digest: the note about a closed session must not open one."""
        return hashlib.sha256(self.value.encode()).hexdigest()[:32]


class Sessions:
    """Opens and checks sessions. `clock`: seconds since 1970."""

    def __init__(self, tokens: Iterable[SecretStr], clock: Callable[[], float] = time.time) -> None:
        self._tokens = [token.get_secret_value().encode() for token in tokens]
        self._clock = clock

    @property
    def needed(self) -> bool:
        """False without tokens: then the service is bound to this machine alone, and so is the console."""
        return bool(self._tokens)

    def open(self, offered: str) -> Session | None:
        """A new session for one of the tokens, None for anything else. Every token is compared, in constant time."""
        given = offered.strip().encode()
        right = [hmac.compare_digest(given, token) for token in self._tokens]
        if not any(right):
            return None
        expires = int(self._clock()) + SESSION_S
        content = f"{expires}.{secrets.token_urlsafe(16)}"
        return Session(f"{content}.{_signature(self._keys[right.index(True)], content)}", expires)

    def check(self, value: str | None) -> Session | None:
        """The session of a cookie, None when it is not one of ours or has expired."""
        content, _, signature = (value or "").rpartition(".")
        given = signature.encode()
        right = [hmac.compare_digest(given, _signature(key, content).encode()) for key in self._keys]
        expires = content.partition(".")[0]
        if not any(right) or not expires.isdecimal() or int(expires) <= self._clock():
            return None
        return Session(value or "", int(expires))

    @cached_property
    def _keys(self) -> list[bytes]:
        """Slow to derive (some 50 ms each), so that a cookie is no quick way to guess a weak token."""
        return [hashlib.scrypt(token, salt=_SALT, n=2**14, r=8, p=1, dklen=32) for token in self._tokens]


class Guesses:
    """How many wrong tokens a replica still answers: GUESSES in GUESSES_S, whoever sends them.

    Not by address: behind a proxy there is one, and the header that names others can be made up. Beyond, right tokens are
    refused, too; sessions that are open are not affected, nor is the command line.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: deque[float] = deque(maxlen=GUESSES)

    def wait_s(self) -> float:
        """Seconds until the next token is looked at, 0 when that is now."""
        if len(self._wrong) < GUESSES:
            return 0.0
        return max(self._wrong[0] + GUESSES_S - self._clock(), 0.0)

    def wrong(self) -> None:
        """One more."""
        self._wrong.append(self._clock())


def form_token(cookie: str) -> str:
    """What a form must carry beside the cookie that came with it. Only a page of ours can: others cannot read the cookie."""
    return hmac.new(cookie.encode(), b"degre console form", hashlib.sha256).hexdigest()


def form_token_right(cookie: str | None, given: str | None) -> bool:
    """Compared in constant time."""
    return bool(cookie) and hmac.compare_digest(form_token(cookie or "").encode(), (given or "").encode())


def _signature(key: bytes, content: str) -> str:
    return hmac.new(key, content.encode(), hashlib.sha256).hexdigest()
