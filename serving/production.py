"""The Serve application for a cluster: what `serve deploy deploy/serve.yaml` builds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from degre_prod.config import load_settings
from degre_prod.errors import ConfigurationError, explain
from serving.deploy import application
from serving.tracing import ray_serve_variables


class Arguments(BaseModel):
    """`args` of serve.yaml: paths that every node can read. The bundle serves until a rollout plan names another."""

    model_config = ConfigDict(extra="forbid")

    bundle: Path
    config: Path


def build(args: dict[str, Any]) -> Any:
    """The application; `args` are `Arguments`. Secrets (DEGRE_REDIS__URL, DEGRE_SERVING__TOKENS) come from the nodes' environment.

    Raises BundleError, ConfigurationError: a cluster's service needs Redis, tokens, and HAProxy's environment.
    """
    from degre_prod.bundle import load_bundle

    try:
        arguments = Arguments.model_validate(args)
    except ValidationError as error:
        raise ConfigurationError(f"args of serve.yaml: {explain(error)}") from None
    settings = load_settings(arguments.config)
    if settings.redis.url is None:
        raise ConfigurationError("redis.url: set DEGRE_REDIS__URL on every node before `ray start`")
    if not any(token.get_secret_value() for token in settings.serving.tokens):
        raise ConfigurationError("serving.tokens: set DEGRE_SERVING__TOKENS on every node; a cluster is never open")
    if "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ:  # Ray's own proxies would serve, many times slower
        raise ConfigurationError(
            'RAY_SERVE_ENABLE_HA_PROXY: `eval "$(python -m serving.haproxy FOLDER)"` on every node before `ray start`'
        )
    load_bundle(arguments.bundle)
    # A replica's own runtime environment replaces the node's, so what concerns it is handed on.
    variables = {name: value for name, value in os.environ.items() if name.startswith("RAY_SERVE_")}
    return application(arguments.bundle, settings, variables | ray_serve_variables(settings.serving))
