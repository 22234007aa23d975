"""The configuration: one frozen tree, from defaults, then one YAML file, then `DEGRE_…` environment variables, then
what a command was told explicitly.

`DEGRE_SERVING__DEADLINE_MS=50` sets `serving.deadline_ms`. Units are in the names.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from degre_prod.errors import ConfigurationError


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """Validation of impression logs."""

    max_rejected_share: float = Field(0.05, ge=0, le=1, description="more rejected rows than this share is an error")


class ScalingConfig(_Section):
    """One worker group for the evaluator, mining and the generator; only these numbers change on a cluster."""

    num_workers: int = Field(2, ge=0, description="Ray Train workers; 0 runs in this process without Ray")
    cpus_per_worker: float = Field(1.0, gt=0, description="what Ray reserves for each")
    max_failures: int = Field(2, ge=0, description="worker crashes survived in one run")
    placement: Literal["spread", "pack"] = Field(
        "spread", description="workers over as many nodes as there are, or on as few as hold them"
    )


class RayConfig(_Section):
    """Where Ray runs. Without an address a private local cluster is started and stopped again."""

    address: str | None = Field(
        None, description="HEAD:6379 of a cluster to join; RAY_ADDRESS counts where it is absent"
    )
    num_cpus: int = Field(4, ge=1, description="logical CPUs of the private cluster")
    object_store_mb: int = Field(256, ge=80, description="of the private cluster")


class EvaluatorConfig(_Section):
    """Lookahead Evaluator."""

    head: Literal["count_markov", "continuation", "step"] = Field(
        "count_markov", description="how the count after each slot is predicted: docs/concepts.md"
    )
    prefix_state: Literal["auto", "additive", "products", "attention"] = Field(
        "auto", description="auto keeps the one with the lowest validation loss; those far behind half-way are dropped"
    )
    members: int = Field(2, ge=1, description="of the ensemble; where they disagree, lists are worth less")
    width: int = Field(32, ge=4, multiple_of=2, description="D; two attention heads share it")
    layers: int = Field(2, ge=1, description="Transformer layers over slots (attention only)")
    epochs: int = Field(14, ge=1, description="of the forms additive and products")
    attention_epochs: int = Field(8, ge=1, description="of the attention form")
    batch_size: int = Field(512, ge=1, description="samples of one optimiser step")
    learning_rate: float = Field(3e-3, gt=0, description="peak of the one-cycle schedule")
    weight_decay: float = Field(0.3, ge=0, description="of AdamW")
    min_steps: int = Field(800, ge=1, description="optimiser steps of `epochs` at least: a small log gets more epochs")
    togo_steps: int = Field(400, ge=1, description="optimiser steps of the value-to-go network")
    seed: int = Field(0, description="of weights and batches; the same one, the same result on one thread")


class MiningConfig(_Section):
    """Beam mining of unexposed lists."""

    requests: int = Field(3000, ge=1, description="training requests to mine, the newest ones")
    beam_width: int = Field(8, ge=1, description="K, of each of the two beams")
    sweeps: int = Field(2, ge=0, description="of local search over the slots, from the best list of the beams; 0: none")
    shortlist: int | None = Field(
        None,
        ge=1,
        description="later sweeps try only so many items at a slot, the best there of the first; all when absent",
    )
    keep: int = Field(4, ge=1, description="lists kept per request")
    replan_width: int = Field(4, ge=1, description="beam width of the re-plan in on-policy rounds")
    beams: Literal["union", "prefix"] = Field(
        "union", description="union: by U and by U + G; prefix: by U alone, the paper's"
    )
    trust_region: int | None = Field(
        None, ge=1, description="place only the first so many candidates by prior rank; any when absent"
    )
    pessimism: float = Field(1.0, ge=0, description="κ: lists are scored by mean − κ·std over evaluator.members")
    shard_size: int = Field(256, ge=1, description="requests per output file")
    chunk_size: int = Field(64, ge=1, description="requests expanded together")


class GeneratorConfig(_Section):
    """Online Generator and its targets."""

    width: int = Field(64, ge=4, multiple_of=4, description="D; four attention heads share it")
    encoder_layers: int = Field(1, ge=1, description="blocks of attention over the candidates")
    decoder: Literal["gru", "attention"] = Field("gru", description="what remembers the list so far")
    epochs: int = Field(16, ge=1, description="passes over the mined lists")
    batch_size: int = Field(64, ge=1, description="samples of one optimiser step")
    learning_rate: float = Field(2e-3, gt=0, description="peak of the one-cycle schedule")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    targets: Literal["backed_up", "one_step"] = Field(
        "backed_up", description="soft labels: the best list through each next item, or its value alone (the paper's)"
    )
    alpha: float = Field(0.5, ge=0, description="weight of KL(q ‖ p) beside the cross-entropy")
    tau_q: float = Field(0.3, gt=0, description="temperature of the soft labels")
    tau_w: float = Field(0.1, gt=0, description="temperature of the list weights, in units of mean utility")
    on_policy_rounds: int = Field(
        0, ge=0, description="times that training pauses to mine the generator's own lists and goes on with them added"
    )
    seed: int = Field(0, description="of weights and batches; the same one, the same result on one thread")


class JudgeConfig(_Section):
    """The judge of whole lists, for measuring; the epoch with the lowest held-out loss is kept."""

    width: int = Field(32, ge=4, multiple_of=4, description="D; four attention heads share it")
    layers: int = Field(2, ge=1, description="blocks of attention over the whole list")
    epochs: int = Field(7, ge=1, description="at most; the best one is kept")
    batch_size: int = Field(256, ge=1, description="samples of one optimiser step")
    learning_rate: float = Field(3e-3, gt=0, description="peak of the one-cycle schedule")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    min_steps: int = Field(800, ge=1, description="optimiser steps at least: a small log gets more epochs")
    seed: int = Field(0, description="of weights and batches; the same one, the same result on one thread")


class RedisConfig(_Section):
    """Without a URL a private server is started on a free port and stopped again."""

    url: SecretStr | None = Field(None, description="redis://[user:password@]host:port/db, rediss:// with TLS")


class ServingConfig(_Section):
    """The online path."""

    host: str = Field("127.0.0.1", description="address to bind; beyond loopback tokens are needed")
    port: int = Field(8000, ge=0, le=65535, description="0 picks a free port")
    replicas: int = Field(1, ge=1, description="with max_replicas: how many there are at least")
    max_replicas: int | None = Field(
        None, ge=1, description="scale up to this many on ongoing requests; off when absent"
    )
    target_ongoing_requests: float = Field(
        8.0, gt=0, description="of a replica; more of them make the service scale up"
    )
    scale_up_seconds: float = Field(
        5.0, gt=0, description="ongoing requests are averaged over these, and must be too many for as long"
    )
    scale_down_seconds: float = Field(120.0, ge=0, description="ongoing requests must be too few for as long")
    cpus_per_replica: float = Field(0.5, gt=0, description="what Ray reserves for each")
    threads: int = Field(2, ge=1, description="of a replica; they wait for Redis and share its core")
    deadline_ms: float = Field(100.0, gt=0, description="default when a request names none")
    max_ongoing_requests: int = Field(64, ge=1, description="of a replica; the next one is shed with 429")
    max_queued_requests: int = Field(64, ge=0, description="of a replica beyond those, their bodies still arriving")
    drain_seconds: float = Field(10.0, gt=0, description="for requests under way when a replica stops")
    state_dir: Path | None = Field(None, description="where the last good rollout plan is kept; nowhere when absent")
    max_body_bytes: int = Field(1_000_000, ge=1, description="a larger body is answered 413, unread")
    tokens: tuple[SecretStr, ...] = Field((), description="bearer tokens of /v1, several so that they rotate")
    clock: Literal["wall", "request"] = Field(
        "wall",
        description="`request` lets a request carry its own `event_timestamp`: for replaying logs, never for users",
    )
    redis_timeout_ms: float = Field(50.0, gt=0, description="to connect, and for each answer; nothing is tried twice")
    item_cache_ttl_seconds: float = Field(
        5.0, ge=0, description="how much later than its push an item's new value may be served; 0 keeps no items"
    )
    item_cache_items: int = Field(100_000, ge=1, description="items whose values a replica keeps")
    cache: bool = Field(True, description="answers to equal requests from Redis")
    cache_ttl_seconds: int = Field(30, ge=1, description="of such an answer, ± 10 %")
    exploration_share: float = Field(
        0.0,
        ge=0,
        le=0.2,
        description="slots that get a random candidate, with logged propensity; never under constraints",
    )
    shadow_cpu_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="of one core, for a challenger in shadow; it answers fewer requests rather than more",
    )
    shadow_queue: int = Field(32, ge=1, description="requests waiting for it; more are dropped and counted")
    log_buffer: int = Field(10_000, ge=1, description="served lists waiting for Redis; more are dropped and counted")
    log_stream_max_length: int = Field(
        1_000_000,
        ge=1,
        description="served lists that wait in Redis, and as much feedback; the oldest go first",
    )
    metrics_host: str | None = Field(
        None, description="where each replica shows its metrics on a free port of its own; only at /metrics when absent"
    )
    traces_endpoint: str | None = Field(
        None, description="OpenTelemetry over HTTP, e.g. http://collector:4318/v1/traces; no traces when absent"
    )
    traces_share: float = Field(1.0, gt=0, le=1, description="of the requests whose caller does not trace them")


class CollectConfig(_Section):
    """From Redis Streams to the impression log."""

    window_seconds: float = Field(1800.0, gt=0, description="feedback later than this after its list is late")
    grace_seconds: float = Field(120.0, ge=0, description="how much longer a list waits for deliveries under way")
    remember_seconds: float = Field(
        86_400.0, gt=0, description="how long after a list was written its late feedback is told from a stranger's"
    )
    every_seconds: float = Field(
        300.0,
        gt=0,
        description="pause between passes of a collector that keeps running; a pass writes four files or more",
    )
    retention_days: int | None = Field(
        None, ge=1, description="collected days older than this are deleted; kept when absent"
    )


# The published method's own choices where ours differ (METHOD §2-5): what `mode: paper` puts in the place of defaults.
PAPER: dict[str, dict[str, Any]] = {
    "evaluator": {"prefix_state": "attention", "head": "continuation", "members": 1},
    "mining": {"beams": "prefix", "sweeps": 0},
    "generator": {"targets": "one_step", "decoder": "attention"},
}


class GatesConfig(_Section):
    """What a candidate must show before it may serve."""

    min_requests: int = Field(1000, ge=1, description="usable requests in the training data")
    max_missing_rise: float = Field(
        0.1, ge=0, le=1, description="of a feature's missing share, newest data over training"
    )
    max_psi: float = Field(0.5, gt=0, description="population stability index of a feature")
    max_ks: float = Field(0.3, gt=0, le=1, description="Kolmogorov–Smirnov distance of a numeric feature")
    max_feedback_ratio: float = Field(3.0, gt=1, description="feedback a list, newest data over before, either way")
    max_calibration_error: float = Field(
        0.05, gt=0, description="expected calibration error of the new evaluator, less what chance does"
    )
    min_rank_quality: float = Field(0.55, ge=0, le=1, description="AUC of the new evaluator on held-out feedback")
    min_champion_rank_quality: float = Field(0.5, ge=0, le=1, description="AUC of the champion's evaluator there")
    max_value_loss: float = Field(0.01, ge=0, description="of the champion's judged value")
    min_effective_samples: float = Field(200.0, gt=0, description="below it an off-policy estimate decides nothing")
    max_latency_ratio: float = Field(1.5, gt=0, description="candidate's decoding time over the champion's")
    min_coverage_ratio: float = Field(0.5, ge=0, description="items shown, candidate's over the champion's")
    min_diversity_ratio: float = Field(0.5, ge=0, description="how much a list's items differ, likewise")


class RetrainConfig(_Section):
    """From collected logs to a candidate: which history, what is held out, how much is learnt on top of the champion."""

    history_days: float | None = Field(28.0, gt=0, description="requests so long before the newest; any when absent")
    max_requests: int = Field(100_000, ge=1, description="of that history, the newest")
    leave_out_days: tuple[str, ...] = Field(
        (), description="UTC days of arrival, such as 2026-01-31, whose collected lists are never trained on"
    )
    heldout_share: float = Field(
        0.15,
        gt=0,
        le=0.4,
        description="of the requests since the champion: the newest so many for the gates, as many before for epochs",
    )
    max_heldout: int = Field(5000, ge=1, description="requests held out for either at most")
    warm_epochs_share: float = Field(
        0.4, gt=0, le=1, description="epochs on top of the champion, of those from nothing"
    )
    warm_learning_rate_share: float = Field(0.5, gt=0, le=1, description="of the learning rate, on top of the champion")
    keep_nights: int = Field(7, ge=1, description="nights whose intermediate files stay; reports and bundles always do")


class Settings(BaseSettings):
    """The whole tree. The constructor takes its arguments and nothing else: `load_settings` reads file and environment."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="DEGRE_", env_nested_delimiter="__")

    mode: Literal["default", "paper"] = Field(
        "default", description="`paper`: the published method wherever nothing else is set explicitly"
    )
    data: DataConfig = DataConfig()
    ray: RayConfig = RayConfig()
    scaling: ScalingConfig = ScalingConfig()
    evaluator: EvaluatorConfig = EvaluatorConfig()
    mining: MiningConfig = MiningConfig()
    generator: GeneratorConfig = GeneratorConfig()
    judge: JudgeConfig = JudgeConfig()
    redis: RedisConfig = RedisConfig()
    serving: ServingConfig = ServingConfig()
    collect: CollectConfig = CollectConfig()
    gates: GatesConfig = GatesConfig()
    retrain: RetrainConfig = RetrainConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - signature of the base class
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over defaults: a copy with one value changed must not meet the environment a second time."""
        return (init_settings,)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        """What the mode presets, under what is set explicitly."""
        if not isinstance(values, dict) or values.get("mode") != "paper":
            return values
        explicit = {k: v.model_dump(exclude_unset=True) if isinstance(v, BaseModel) else v for k, v in values.items()}
        return merge(PAPER, explicit)


def valid_keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the tree, such as `serving.deadline_ms`."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from valid_keys(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def load_settings(path: Path | None = None, overrides: dict[str, Any] | None = None) -> Settings:
    """Settings from a YAML file (optional), over it the environment, over that explicit overrides (nested dict).

    Raises ConfigurationError naming each wrong key or value and the nearest valid keys.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigurationError(f"cannot read configuration {path}: {error}") from error
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise ConfigurationError(f"{path}: a mapping of sections is needed, e.g. `serving: {{deadline_ms: 50}}`")
    keys = list(valid_keys())
    strange = {name: dotted for name, dotted in _environment() if dotted not in keys}
    problems = [_unknown(name, dotted, keys) for name, dotted in strange.items()]
    try:
        settings = Settings(**merge(merge(values, EnvSettingsSource(Settings)()), overrides or {}))
    except SettingsError as error:  # not the JSON that a list needs
        example = """DEGRE_SERVING__TOKENS='["first", "second"]'"""
        raise ConfigurationError(f"configuration: {error}; a list is given as JSON: {example}") from None
    except ValidationError as error:
        for problem in error.errors():
            dotted = ".".join(str(part) for part in problem["loc"])
            if problem["type"] != "extra_forbidden":
                problems.append(f"{dotted}: {problem['msg']}")
            elif dotted not in strange.values():
                problems.append(_unknown(dotted, dotted, keys))
    if problems:
        raise ConfigurationError("configuration: " + "; ".join(problems))
    return settings


def paper_settings(settings: Settings) -> Settings:
    """The same settings in the mode `paper`; what was set explicitly stays. A dump of all values counts as explicit."""
    return Settings(**settings.model_dump(exclude_unset=True) | {"mode": "paper"})


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, `over` winning; neither is changed."""
    out = dict(base)
    for key, value in over.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def _environment() -> Iterator[tuple[str, str]]:
    """Our environment variables and the dotted key each sets."""
    for name in os.environ:
        if name.startswith("DEGRE_") and not name.startswith("DEGRE_TEST_"):
            yield name, name.removeprefix("DEGRE_").lower().replace("__", ".")


def _unknown(name: str, dotted: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(dotted, keys, n=3, cutoff=0.3) or keys
    return f"{name} is not a setting; did you mean {', '.join(near)}?"
