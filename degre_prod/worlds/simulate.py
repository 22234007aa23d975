"""Simulated data sets: logs of a world under a noisy upstream ranker, in the same contract as real logs.

The truth stays in `truth/`; nothing else in the folder, schema included, says which world it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from degre_prod.artefact import MARK, digest, finished, publish, workplace, write_json, write_text
from degre_prod.errors import ConfigurationError
from degre_prod.records import TIMESTAMP, impression_schema
from degre_prod.schema import DataSchema
from degre_prod.worlds.catalogue import ITEMS, USERS, Catalogue
from degre_prod.worlds.spec import LOGGING_TEMPERATURE, WorldSpec, training_requests, world_spec
from degre_prod.worlds.truth import TRUTH_FILE, World, make_world

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
FEATURES_AT: Final = START - timedelta(days=1)
_FORMAT: Final = 2  # part of the hash: raise it when the same arguments give other bytes
_NUMERIC: Final = ("quality", "hook", "boredom", "price")


@dataclass(frozen=True, slots=True)
class Log:
    """B logged requests, candidates in upstream order; `shown_BL` are indices into the candidates."""

    user_ids_B: np.ndarray
    candidate_ids_BC: np.ndarray
    upstream_BC: np.ndarray
    shown_BL: np.ndarray
    list_propensity_B: np.ndarray
    click_BL: np.ndarray
    seen_BL: np.ndarray


def simulate(
    world: str,
    size: str,
    dst: Path,
    *,
    seed: int = 0,
    train: int | None = None,
    validation: int = 2000,
    test: int = 1000,
    tau: float = LOGGING_TEMPERATURE,
    exploration: float = 0.0,
    traffic: int = 0,
) -> dict[str, Any]:
    """Write a simulated data set into the folder `dst` and return its summary; done already means nothing to do.

    `train` defaults to 30,000 requests (large) or 40,000 (small); requests come one second apart, training first, then
    validation, then test. `tau` is the temperature of the logging policy: towards 0 the log shows the upstream order alone.
    `exploration` is the share of requests that show a uniformly random list instead; `traffic` numbers the draws: another
    number gives other requests of the same users and items. Raises ConfigurationError for an unknown world or size, a
    count or share that makes no sense, or a folder that holds something else.
    """
    spec = world_spec(world, size)
    counts = {
        "train": training_requests(size) if train is None else train,
        "validation": validation,
        "test": test,
    }
    if counts["train"] < 1 or validation < 0 or test < 0 or seed < 0:
        raise ConfigurationError(f"at least one training request, nothing negative; got {counts} and seed {seed}")
    if tau <= 0:
        raise ConfigurationError(
            f"the logging temperature tau is above 0 ({LOGGING_TEMPERATURE} by default), got {tau}"
        )
    if not 0 <= exploration <= 1 or traffic < 0:
        raise ConfigurationError(
            f"exploration is a share from 0 to 1 and traffic a number from 0; got {exploration} and {traffic}"
        )
    dst = dst.resolve()
    if dst.exists() and not (dst / MARK).is_file() and (not dst.is_dir() or any(dst.iterdir())):
        raise ConfigurationError(f"{dst} holds something that isn't a data set of ours; name a new or empty folder")
    made_from = digest("simulate", _FORMAT, world, size, seed, counts, tau, float(exploration), traffic)
    conversion = dst / "conversion.json"
    if not finished(dst, made_from):
        place = workplace(dst, made_from)
        simulated = make_world(world, size, seed)
        random = np.random.default_rng([seed, 1 + traffic])
        log = draw_log(simulated, sum(counts.values()), random, tau=tau, exploration=exploration)
        schema = data_schema(spec, counts["train"], validation)
        write_text(place / "schema.yaml", schema.to_yaml())
        pq.write_table(impressions(log, schema), place / "impressions.parquet")
        pq.write_table(user_features(simulated.catalogue), place / "user_features.parquet")
        pq.write_table(item_features(simulated.catalogue), place / "item_features.parquet")
        write_json(place / TRUTH_FILE, {"world": world, "size": size, "seed": seed})
        write_json(place / conversion.name, _summary(schema, log, counts))
        publish(dst, made_from)
    return {"world": world, "size": size, "seed": seed, **json.loads(conversion.read_text())}


def draw_log(
    world: World,
    requests: int,
    rng: np.random.Generator,
    *,
    tau: float = LOGGING_TEMPERATURE,
    exploration: float = 0.0,
    market: World | None = None,
) -> Log:
    """Draw requests, rank them upstream, show a Plackett–Luce sample of that ranking (scores over τ), and let users react
    as in `market`, a drifted world (the same one when absent).

    A share `exploration` of the requests, drawn by lot, shows a uniformly random list; `list_propensity_B` is the chance
    of the shown list under both together.
    """
    spec = world.spec
    user_ids_B = rng.integers(1, USERS + 1, size=requests)
    drawn_BC = _distinct(rng, requests, spec.candidates) + 1
    noise_BC = rng.normal(scale=spec.upstream_noise, size=drawn_BC.shape)
    score_BC = (world.base_logits(user_ids_B, drawn_BC) + noise_BC).astype(np.float32)
    order_BC = np.argsort(-score_BC, axis=1, kind="stable")
    candidate_ids_BC = np.take_along_axis(drawn_BC, order_BC, axis=1)
    upstream_BC = np.take_along_axis(score_BC, order_BC, axis=1)
    logits_BC = upstream_BC.astype(np.float64) / tau
    shown_BL, propensity_B = draw_plackett_luce(logits_BC, spec.list_length, rng)
    if exploration > 0:
        explored_B = rng.random(requests) < exploration
        key_XC = rng.random((int(explored_B.sum()), spec.candidates))
        shown_BL[explored_B] = np.argsort(key_XC, axis=1)[:, : spec.list_length]
        propensity_B = _mixed_propensity(logits_BC, shown_BL, exploration)
    shown_ids_BL = np.take_along_axis(candidate_ids_BC, shown_BL, axis=1)
    click_BL, seen_BL = react(market or world, user_ids_B, shown_ids_BL, rng)
    return Log(user_ids_B, candidate_ids_BC, upstream_BC, shown_BL, propensity_B, click_BL, seen_BL)


def react(
    world: World, user_ids_B: np.ndarray, shown_ids_BL: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Clicks and whether the user was still there, bool (B, L), slot by slot."""
    chance_BL, leave_BL = world.click_probabilities(user_ids_B, shown_ids_BL), world.leave(shown_ids_BL)
    would_click_BL = rng.random(chance_BL.shape) < chance_BL
    would_leave_BL = ~would_click_BL & (rng.random(chance_BL.shape) < leave_BL)
    seen_BL = np.ones(chance_BL.shape, dtype=bool)
    seen_BL[:, 1:] = ~np.logical_or.accumulate(would_leave_BL, axis=1)[:, :-1]
    return would_click_BL & seen_BL, seen_BL


def _distinct(rng: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """Rows of `count` distinct catalogue rows, uniform over ordered draws: rows with a repeat are drawn again."""
    drawn = rng.integers(0, ITEMS, size=(rows, count))
    again = np.arange(rows)
    while again.size:
        ordered = np.sort(drawn[again], axis=1)
        again = again[(ordered[:, 1:] == ordered[:, :-1]).any(axis=1)]
        drawn[again] = rng.integers(0, ITEMS, size=(len(again), count))
    return drawn


def draw_plackett_luce(logits_BC: np.ndarray, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ordered samples (B, length) as indices, and their exact probabilities (B,)."""
    logits_BC = logits_BC.astype(np.float64)
    keys_BC = logits_BC + rng.gumbel(size=logits_BC.shape)
    shown_BL = np.argsort(-keys_BC, axis=1, kind="stable")[:, :length]
    return shown_BL, _list_propensity(logits_BC, shown_BL)


def _list_propensity(logits_BC: np.ndarray, shown_BL: np.ndarray) -> np.ndarray:
    """Probability (B,) of each ordered list under Plackett–Luce."""
    weight_BC = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
    shown_weight_BL = np.take_along_axis(weight_BC, shown_BL, axis=1)
    np.put_along_axis(weight_BC, shown_BL, 0.0, axis=1)
    left_BL = weight_BC.sum(axis=1, keepdims=True) + np.cumsum(shown_weight_BL[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(np.prod(shown_weight_BL / left_BL, axis=1))


def _mixed_propensity(logits_BC: np.ndarray, shown_BL: np.ndarray, exploration: float) -> np.ndarray:
    """Probability (B,) of each list where a share of the requests shows any list of its length alike."""
    left_L = logits_BC.shape[1] - np.arange(shown_BL.shape[1], dtype=np.float64)
    ranked_B = _list_propensity(logits_BC, shown_BL)
    return np.asarray((1 - exploration) * ranked_B + exploration / np.prod(left_L))


def data_schema(spec: WorldSpec, train: int, validation: int) -> DataSchema:
    """The schema of a simulated data set; it tells the size, not the world."""
    numeric = [{"name": name, "kind": "numeric"} for name in _NUMERIC]
    return DataSchema.model_validate(
        {
            "name": f"simulated_{spec.size}",
            "id_type": "int64",
            "list_length": spec.list_length,
            "max_candidates": spec.candidates,
            "objectives": [{"name": "click"}],
            "user": {"features": [{"name": "taste", "kind": "vector", "size": 3}]},
            "item": {"features": [{"name": "style", "kind": "vector", "size": 3}, *numeric]},
            "scores": ["upstream"],
            "validation_start": START + timedelta(seconds=train),
            "test_start": START + timedelta(seconds=train + validation),
        }
    )


def impressions(log: Log, schema: DataSchema) -> pa.Table:
    """The log in the impression-log contract, one row a request."""
    B = len(log.user_ids_B)
    times_B = np.datetime64(START.replace(tzinfo=None), "us") + np.arange(B) * np.timedelta64(1_000_000, "us")
    columns = {
        "request_id": pa.array([f"r{i:07d}" for i in range(B)]),
        "event_timestamp": pa.array(times_B).cast(TIMESTAMP),
        "user_id": pa.array(log.user_ids_B, pa.int64()),
        "candidate_ids": _lists(log.candidate_ids_BC),
        "upstream_scores": pa.StructArray.from_arrays([_lists(log.upstream_BC)], ["upstream"]),
        "shown_ids": _lists(np.take_along_axis(log.candidate_ids_BC, log.shown_BL, axis=1)),
        "feedback": pa.StructArray.from_arrays([_lists(log.click_BL.astype(np.float32))], ["click"]),
        "list_propensity": pa.array(log.list_propensity_B.astype(np.float32)),
    }
    return pa.table(columns, schema=pa.schema([field for field in impression_schema(schema) if field.name in columns]))


def user_features(catalogue: Catalogue) -> pa.Table:
    """The user feature table."""
    return _feature_table("user_id", catalogue.user_ids, {"taste": _lists(catalogue.taste)})


def item_features(catalogue: Catalogue) -> pa.Table:
    """The item feature table."""
    numeric = {name: pa.array(getattr(catalogue, name)) for name in _NUMERIC}
    return _feature_table("item_id", catalogue.item_ids, {"style": _lists(catalogue.style), **numeric})


def _feature_table(key: str, ids: np.ndarray, columns: dict[str, pa.Array]) -> pa.Table:
    stamp = pa.array(np.full(len(ids), np.datetime64(FEATURES_AT.replace(tzinfo=None), "us"))).cast(TIMESTAMP)
    return pa.table({key: pa.array(ids), "event_timestamp": stamp, "created_timestamp": stamp, **columns})


def _lists(rows: np.ndarray) -> pa.Array:
    """A list column from a matrix."""
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(rows).ravel()))


def _summary(schema: DataSchema, log: Log, counts: dict[str, int]) -> dict[str, Any]:
    """What the data set holds, without the truth, in the words of the converters."""
    return {
        "data_set": schema.name,
        "requests": len(log.user_ids_B),
        "requests_by_split": counts,
        "user_feature_rows": USERS,
        "item_feature_rows": ITEMS,
        "rejected": 0,
        "rejected_by_rule": {},
        "clicks_per_list": round(float(log.click_BL.sum(axis=1).mean()), 4),
        "seen_share": round(float(log.seen_BL.mean()), 4),
    }
