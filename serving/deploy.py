"""One Ray Serve deployment behind HAProxy, from a bundle folder to a ready URL and back to nothing."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from degre_prod.config import RedisConfig, ServingConfig, Settings
from degre_prod.errors import ConfigurationError, ServiceError
from serving.auth import require_safe_host
from serving.cluster import environment, ray_cluster
from serving.haproxy import haproxy_environment
from serving.ports import free_port
from serving.protocol import MAX_DEADLINE_MS
from serving.replica import BuildEngine, Replica, build_engine
from serving.tracing import ray_serve_variables

APPLICATION = "rerank"
READY_SECONDS = 120.0
# Longer than any deadline: only requests whose body never arrives get this far.
REQUEST_SECONDS = MAX_DEADLINE_MS / 1000 + 5
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 5.0, 10.0
DRAIN_POLL_S = 0.2
NO_LIMIT = 1_000_000
# Ray runs its workers, and with them replicas and HAProxy, at 15: whoever else computes on the machine would go first.
NICENESS = {"RAY_worker_niceness": "0"}
REPORTS = 5  # of a replica's ongoing requests within the time they are averaged over


@contextmanager
def running_service(
    bundle: Path, settings: Settings, redis_url: str, *, build: BuildEngine = build_engine
) -> Iterator[str]:
    """Serve a bundle inside the block; yields the base URL once the service is ready, leaves no process behind.

    A rollout plan in Redis goes before the bundle given. `build` makes engines of bundles, in the replicas.
    Uses the Ray cluster this process has joined, else the one at `settings.ray.address`, else a private one.
    Raises BundleError, ConfigurationError (open host without tokens, Serve already running there), ServiceError (not ready).
    """
    from degre_prod.bundle import load_bundle

    require_safe_host(settings.serving)
    load_bundle(bundle)  # every replica verifies it again; here it fails before anything is started
    settings = settings.model_copy(update={"redis": RedisConfig(url=SecretStr(redis_url))})
    host, port = settings.serving.host, settings.serving.port or free_port(settings.serving.host)
    bundle = bundle.resolve()
    # The driver reads the variables when it first imports ray.serve, everyone else gets them as runtime environment.
    with (
        environment({name: os.environ.get(name, value) for name, value in NICENESS.items()}),
        ray_cluster(settings.ray),
        haproxy_environment() as haproxy,
        environment(variables := haproxy | ray_serve_variables(settings.serving)),
    ):
        _deploy(application(bundle, settings, variables, build), host, port, variables)
        try:
            url = f"http://{_reachable(host)}:{port}"
            wait_until_ready(url)
            yield url
        finally:
            from ray import serve

            serve.shutdown()


def wait_until_ready(url: str, seconds: float = READY_SECONDS) -> None:
    """Poll `/readyz`; raises ServiceError with its last answer when that takes longer than `seconds`."""
    give_up = time.monotonic() + seconds
    last = "no answer"
    with httpx.Client(timeout=2.0) as client:
        while time.monotonic() < give_up:
            try:
                answer = client.get(f"{url}/readyz")
                if answer.status_code == 200:
                    return
                last = answer.text[:500]
            except httpx.HTTPError as error:
                last = f"{type(error).__name__}: {error}"
            time.sleep(0.05)
    raise ServiceError(f"{url} was not ready after {seconds:.0f} s: {last}")


def application(
    bundle: Path, settings: Settings, variables: Mapping[str, str], build: BuildEngine = build_engine
) -> Any:
    """The Serve application: one deployment with every limit stated (Serve's defaults have none)."""
    from ray import serve

    serving = settings.serving
    if serving.max_replicas is not None and serving.max_replicas < serving.replicas:
        raise ConfigurationError(
            f"serving.max_replicas: {serving.max_replicas} is less than serving.replicas, {serving.replicas}"
        )
    scale: dict[str, Any] = {"num_replicas": serving.replicas}
    if serving.max_replicas is not None:
        scale = {"autoscaling_config": _autoscaling(serving, serving.max_replicas)}
    deployment = serve.deployment(
        serve.ingress(None)(Replica),
        name=APPLICATION,
        # Past its own limits Ray Serve answers in plain text: the application's come first, whose 429 is a problem document.
        max_ongoing_requests=NO_LIMIT,
        max_queued_requests=-1,
        graceful_shutdown_timeout_s=serving.drain_seconds,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        ray_actor_options={"num_cpus": serving.cpus_per_replica, "runtime_env": {"env_vars": dict(variables)}},
        **scale,
    )
    return deployment.bind(bundle, settings, build)


def _autoscaling(serving: ServingConfig, most: int) -> Any:
    """Between `serving.replicas` and `most`: the mean of the last `scale_up_seconds` over the target for as long."""
    from ray.serve.config import AutoscalingConfig

    with warnings.catch_warnings():
        # Ray announces that environment variables will take the interval's place; its 2.60 does not read them yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=serving.replicas,
            max_replicas=most,
            target_ongoing_requests=serving.target_ongoing_requests,
            metrics_interval_s=serving.scale_up_seconds / REPORTS,
            look_back_period_s=serving.scale_up_seconds,
            upscale_delay_s=serving.scale_up_seconds,
            downscale_delay_s=serving.scale_down_seconds,
        )


def _deploy(application: Any, host: str, port: int, variables: dict[str, str]) -> None:
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if any(a["namespace"] == "serve" for a in ray.util.list_named_actors(all_namespaces=True)):
        raise ConfigurationError("Ray Serve already runs on this cluster; stop it with `serve shutdown` or use another")
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port, "request_timeout_s": REQUEST_SECONDS},
        controller_options={"runtime_env": {"env_vars": variables}},
    )
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        told = [d.message for a in serve.status().applications.values() for d in a.deployments.values()]
        serve.shutdown()
        raise ServiceError(f"the service did not start: {error} {' '.join(told)}") from error


def _reachable(host: str) -> str:
    """An address to call a service bound to `host` from this machine."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
