"""One Ray Serve replica: its engines, made of bundles, and the application around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from degre_prod.bundle import Bundle
    from serving.engine import Engine, ServingBundle

BuildEngine = Callable[["Bundle", Settings], "Engine"]


def build_engine(bundle: ServingBundle, settings: Settings) -> Engine:
    """The engine of a verified bundle, reading features and caching in `settings.redis.url`.

    Raises ConfigurationError.
    """
    from serving.cache import ResultCache
    from serving.engine import Engine
    from serving.features import open_reader
    from serving.guard import GuardedFeatures

    if settings.redis.url is None:
        raise ConfigurationError("redis.url: serving needs one, for example DEGRE_REDIS__URL=redis://127.0.0.1:6379")
    serving, url = settings.serving, settings.redis.url.get_secret_value()
    reader = open_reader(bundle.schema, url, serving)
    features = GuardedFeatures(reader, reader.ping)
    cache = None
    if serving.cache:
        cache = ResultCache(url, ttl_seconds=serving.cache_ttl_seconds, timeout_ms=serving.redis_timeout_ms)
    return Engine(bundle, features, cache, serving)


class Replica:
    """What Ray Serve runs: it builds the application, and asks for the replica's health."""

    def __init__(self, bundle: Path, settings: Settings, build: BuildEngine = build_engine) -> None:
        self._bundle, self._settings, self._build = bundle, settings, build
        self._application: FastAPI | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, its first engine loaded: HAProxy never sends a request to a replica that is not ready."""
        from serving.app import create_app
        from serving.heap import settle_heap
        from serving.logs import configure_logs
        from serving.rollout import replica_engines

        configure_logs()
        first, load = replica_engines(self._bundle, self._settings, self._build)
        settle_heap()
        self._application = create_app(lambda: first, self._settings, load)
        return self._application

    def check_health(self) -> None:
        """Raises RuntimeError when Ray Serve should replace the replica."""
        if self._application is not None and not self._application.state.service.healthy():
            raise RuntimeError("too many threads are lost to work that never ended")
