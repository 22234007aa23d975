"""The Ray cluster to run on: the one already joined, the one at an address, else a private one, gone afterwards."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from degre_prod.config import RayConfig
from degre_prod.errors import ConfigurationError

# Ray keeps Unix sockets below its temporary folder, and their paths may be 107 bytes long: TMPDIR may be too deep.
_SHORT_TMP = "/tmp"
# Nobody reads the metrics of a private cluster, and the workers that Ray starts before anyone asks wait for work in vain: what
# runs there has an environment of its own. Both cost some processor seconds at the start, and a little all the time.
_LEAN = {"RAY_enable_metrics_collection": "0", "RAY_prestart_worker_first_driver": "0"}


@contextmanager
def ray_cluster(config: RayConfig) -> Iterator[None]:
    """Be connected to Ray inside the block. A cluster this process has already joined is used and left alone.

    An address in RAY_ADDRESS, which Ray sets in every job it runs, counts where the configuration has none. Raises
    ConfigurationError when that is a job server's: those take jobs, they cannot be joined.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address is not None and address.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"{address} is a job server, there `degre submit` runs; here set ray.address to the cluster's own address, "
            "HEAD:6379, or unset RAY_ADDRESS for a private cluster"
        )
    variables = {"RAY_USAGE_STATS_ENABLED": "0"}
    if address is None:
        variables |= _LEAN
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        # Whoever may submit work to a cluster owns the machine. Without a token here Ray would write one into the home.
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _process_token()}
    with environment(variables):
        import ray

        if ray.is_initialized():
            yield
            return
        quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
        if address is not None:
            ray.init(address=address, **quiet)
            try:
                yield
            finally:
                ray.shutdown()
            return
        folder = tempfile.mkdtemp(prefix="degre-ray-", dir=_SHORT_TMP)
        try:
            ray.init(
                num_cpus=config.num_cpus,
                object_store_memory=config.object_store_mb * 1024 * 1024,
                include_dashboard=False,
                _temp_dir=folder,
                **quiet,
            )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@cache
def _process_token() -> str:
    """One token a process: Ray keeps the first it sees, also for the next cluster."""
    return secrets.token_hex(32)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block and put back what was there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
