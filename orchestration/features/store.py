"""Opening the feature store of a data set. `feature_repo/feature_store.yaml` is the one truth for its settings."""

from __future__ import annotations

import atexit
import os
import re
import warnings
import weakref
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degre_prod.errors import FeatureError
from degre_prod.records import TIMESTAMP, feature_type, id_type
from degre_prod.schema import DataSchema, FeatureTable, IdType, load_schema
from serving.features import feast_connection

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore

    from feature_repo.views import Definitions


def open_store(dataset: Path, registry: Path | str, redis_url: str | None = None) -> FeatureStore:
    """The store of one data set.

    `registry` is a file (SQLite) or an SQLAlchemy URL such as `postgresql+psycopg://…`. Without `redis_url` the store
    serves offline reads only: its online side is never contacted.
    """
    from feast import FeatureStore

    from feature_repo.views import repo_config

    if "://" in str(registry):
        registry_url = str(registry)
    else:
        path = Path(registry).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        registry_url = f"sqlite:///{path}"
    connection = feast_connection(redis_url) if redis_url else "offline.invalid:6379"
    _quieten()
    store = FeatureStore(config=repo_config(registry_url, connection, repo_path=dataset.absolute()))
    weakref.finalize(store, _stop_refreshing, store.registry)
    return store


def default_registry(dataset: Path) -> Path:
    """Where a data set's registry lies unless told otherwise: inside its folder, for two data sets never share one."""
    return dataset / "registry.db"


def definitions(dataset: Path, schema: DataSchema | None = None) -> Definitions:
    """Feast definitions of a data set; raises FeatureError for a schema or a file that Feast cannot use."""
    from feature_repo.views import build

    schema = schema or load_schema(dataset)
    folder = dataset.absolute()
    try:
        built = build(schema.model_dump(mode="json"), folder)
    except ValueError as error:
        raise FeatureError(str(error)) from None
    for role, table in (("user", schema.user), ("item", schema.item)):
        _check_columns(folder / f"{role}_features.parquet", f"{role}_id", table, schema.id_type)
    return built


def apply(store: FeatureStore, built: Definitions) -> None:
    """Register the definitions. Idempotent; what the registry knew under the same names is replaced."""
    store.apply(built.objects())
    store.refresh_registry()  # the cache is refreshed by a thread every five minutes, too late for the next line


def _stop_refreshing(registry: Any) -> None:
    """Feast keeps a registry, and a thread that reads it every five minutes, until the process ends, with its store or without."""
    registry.registry_refresh_thread.cancel()
    atexit.unregister(registry._exit_handler)


@cache
def _quieten() -> None:
    """Undo what importing Feast does to a process: deprecations on the terminal, DuckDB's complaint at exit, metrics in files."""
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(ibis|ray|feast)\.")
    atexit.register(_close_duckdb)
    for name in ("PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR"):
        if "feast_metrics_" in os.environ.get(name, ""):
            del os.environ[name]  # importing Feast sets it; inherited, it would change how our own service counts


def _close_duckdb() -> None:
    import ibis

    if ibis.options.default_backend is not None:
        ibis.options.default_backend.disconnect()
        ibis.options.default_backend = None


def _check_columns(path: Path, join_key: str, table: FeatureTable, ids: IdType) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise FeatureError(f"{path}: cannot read the feature table: {error}") from None
    wanted = {
        join_key: id_type(ids),
        "event_timestamp": TIMESTAMP,
        "created_timestamp": TIMESTAMP,
        **{feature.name: feature_type(feature.kind, ids) for feature in table.features},
    }
    for name, kind in wanted.items():
        if name not in found.names:
            raise FeatureError(f"{path}: no column {name}; schema.yaml declares it")
        # Compared as text, for the name of a list's inner field does not matter.
        if _text(found.field(name).type) != _text(kind):
            raise FeatureError(f"{path}: column {name} is {found.field(name).type}; schema.yaml makes it {kind}")


def _text(kind: pa.DataType) -> str:
    return re.sub(r"<\w+: ", "<", str(kind).removeprefix("large_")).replace("large_string", "string")
