"""Bearer tokens: several at once, so that they rotate; compared in constant time."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable

from pydantic import SecretStr

from degre_prod.config import ServingConfig
from degre_prod.errors import ConfigurationError
from serving.problems import Problem


class TokenCheck:
    """Checks an `Authorization` header against the configured tokens; without tokens everything passes."""

    def __init__(self, tokens: Iterable[SecretStr]) -> None:
        self._tokens = [t.get_secret_value().encode() for t in tokens]

    def require(self, header: str | None) -> None:
        """Raises a 401 Problem unless the header carries one of the tokens."""
        if not self._tokens:
            return
        scheme, _, given = (header or "").partition(" ")
        offered = given.strip().encode()
        # Every token is compared, so that the time tells nothing about which one was nearly right.
        matches = [hmac.compare_digest(offered, token) for token in self._tokens]
        if scheme.lower() != "bearer" or not any(matches):
            detail = "a bearer token is needed: `Authorization: Bearer <token>`"
            raise Problem(401, detail, headers={"WWW-Authenticate": "Bearer"})


def require_safe_host(serving: ServingConfig) -> None:
    """Raises ConfigurationError when the service would be open to the network without tokens."""
    if any(not t.get_secret_value() for t in serving.tokens):
        raise ConfigurationError("serving.tokens: a token is empty; leave it out or give it a value")
    if not serving.tokens and not is_loopback(serving.host):
        raise ConfigurationError(
            f"serving.host: {serving.host} is reachable from the network, which needs serving.tokens "
            "(for example DEGRE_SERVING__TOKENS='[\"…\"]'); without tokens only 127.0.0.1 is allowed"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
