"""The model registry, kept by MLflow: one run and one model version for each bundle, aliases `champion` and `challenger`.

SQLite in a file by default, a server by `MLFLOW_TRACKING_URI`. A version names where its bundle lies, the bundle's hash, and
what it was made from, back to the data. Replicas never ask here: the rollout plan is the truth, the aliases follow it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degre_prod.errors import ConfigurationError, MismatchError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
_MAX_PARAMETER, _MAX_BATCH = 6000, 100  # MLflow's limits: characters, parameters logged at once


@dataclass(frozen=True, slots=True)
class Version:
    """A registered bundle. `lineage`: what it was made from (hashes, partitions, code version, parent bundle)."""

    model: str
    version: int
    run_id: str
    bundle_uri: str
    manifest_sha256: str
    lineage: Mapping[str, str]


@dataclass(frozen=True)
class Registry:
    """Bundles of one model name (the data set's)."""

    client: MlflowClient
    model: str

    def register(
        self,
        name: str,
        bundle_uri: str,
        manifest_sha256: str,
        *,
        parameters: Mapping[str, Any],
        metrics: Mapping[str, float],
        lineage: Mapping[str, str],
    ) -> Version:
        """Record a bundle with how it was made and how it did; the same bundle again gives its version back."""
        from mlflow.entities import Metric, Param

        for known in self.versions():
            if known.manifest_sha256 == manifest_sha256:
                return known
        experiment = self.client.get_experiment_by_name(self.model)
        place = experiment.experiment_id if experiment else self.client.create_experiment(self.model)
        run = self.client.create_run(place, run_name=name)
        run_id = run.info.run_id
        now_ms = time.time_ns() // 1_000_000
        said = [Param(key, str(value)[:_MAX_PARAMETER]) for key, value in parameters.items()]
        for params in _batches(said):
            self.client.log_batch(run_id, params=params)
        measured = [Metric(key, float(number), now_ms, 0) for key, number in metrics.items()]
        for some in _batches(measured):
            self.client.log_batch(run_id, metrics=some)
        tags = {"bundle_uri": bundle_uri, "manifest_sha256": manifest_sha256, **lineage}
        made = self.client.create_model_version(self.model, bundle_uri, run_id, tags=tags)
        self.client.set_terminated(run_id)
        return _version(made)

    def versions(self) -> list[Version]:
        """All of them, oldest first."""
        found = self.client.search_model_versions(f"name = '{self.model}'")
        return sorted((_version(v) for v in found), key=lambda v: v.version)

    def alias(self, name: str) -> Version | None:
        """The version an alias points at."""
        aliases = self.client.get_registered_model(self.model).aliases
        return _version(self.client.get_model_version(self.model, aliases[name])) if name in aliases else None

    def point(self, name: str, version: int) -> None:
        """Let an alias point at a version; raises MismatchError when there is no such version."""
        if all(v.version != version for v in self.versions()):
            raise MismatchError(
                f"{self.model} has no version {version}; there are {[v.version for v in self.versions()]}"
            )
        self.client.set_registered_model_alias(self.model, name, str(version))

    def withdraw(self, name: str) -> None:
        """Take an alias away."""
        if self.alias(name) is not None:
            self.client.delete_registered_model_alias(self.model, name)


def open_registry(file: Path, model: str) -> Registry:
    """The registry at MLFLOW_TRACKING_URI, else in the SQLite file `file` (made when absent).

    Raises ConfigurationError when it cannot be opened.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    file.parent.mkdir(parents=True, exist_ok=True)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{file.absolute()}"
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if not client.search_registered_models(f"name = '{model}'"):
            client.create_registered_model(model)
    except MlflowException as error:
        raise ConfigurationError(f"the model registry at {_without_password(uri)} cannot be opened: {error}") from error
    return Registry(client, model)


def _batches(values: list[Any]) -> Iterator[list[Any]]:
    return (values[start : start + _MAX_BATCH] for start in range(0, len(values), _MAX_BATCH))


def _version(made: Any) -> Version:
    tags = dict(made.tags)
    return Version(
        model=made.name,
        version=int(made.version),
        run_id=made.run_id,
        bundle_uri=tags.pop("bundle_uri"),
        manifest_sha256=tags.pop("manifest_sha256"),
        lineage=tags,
    )


def _without_password(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
