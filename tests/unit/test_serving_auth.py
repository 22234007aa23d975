"""Tokens, and the rule that nothing is open to the network without them."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from degre_prod.config import ServingConfig
from degre_prod.errors import ConfigurationError
from serving.auth import TokenCheck, is_loopback, require_safe_host
from serving.problems import Problem

TOKENS = [SecretStr("old"), SecretStr("new")]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer olden", "Basic old", "old", "Bearer ölden"])
def test_wrong_tokens(header: str | None) -> None:
    with pytest.raises(Problem) as caught:
        TokenCheck(TOKENS).require(header)
    assert caught.value.status == 401
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize("header", ["Bearer old", "Bearer new", "bearer new", "Bearer  new "])
def test_each_configured_token_opens(header: str) -> None:
    TokenCheck(TOKENS).require(header)


def test_without_tokens_everything_passes() -> None:
    TokenCheck([]).require(None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_an_open_host_needs_tokens(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"serving\.tokens"):
        require_safe_host(ServingConfig(host=host))
    require_safe_host(ServingConfig(host=host, tokens=(SecretStr("t"),)))


def test_an_empty_token_is_none() -> None:
    with pytest.raises(ConfigurationError, match="empty"):
        require_safe_host(ServingConfig(tokens=(SecretStr(""),)))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    require_safe_host(ServingConfig(host=host))
