"""The application under uvicorn, in a thread of the test's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import uvicorn
from pydantic import SecretStr

from degre_prod.config import RedisConfig, ServingConfig, Settings
from serving.app import create_app
from serving.deploy import wait_until_ready
from serving.engine import Engine
from serving.rollout import Load

HttpServer = Callable[..., AbstractContextManager[str]]


@contextmanager
def served(
    engine: Engine | Callable[[], Engine],
    redis_url: str,
    ready: bool = True,
    load: Load | None = None,
    **serving: object,
) -> Iterator[str]:
    """Yields the base URL, once ready unless `ready` is False; with `load` it follows the plan in Redis.

    `serving` are settings of that section.
    """
    factory = engine if callable(engine) else lambda: engine
    settings = Settings(
        redis=RedisConfig(url=SecretStr(redis_url)),
        serving=ServingConfig.model_validate({"deadline_ms": 5000.0} | serving),
    )
    config = uvicorn.Config(create_app(factory, settings, load), host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        poll(lambda: server.started)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        if ready:
            wait_until_ready(url, 20)
        yield url
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def poll(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until the condition holds; fails the test when it never does."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "waited too long"
        time.sleep(0.01)
