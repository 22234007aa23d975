"""Whether a night goes on from the champion's weights, and with how many epochs.

Weights mean something only under the encoder they were learnt with. So the champion's encoder is kept, with its statistics
and vocabularies, as long as the data set's schema declares the same columns, lists and objectives; otherwise an encoder is
fitted anew and everything starts from nothing. `--cold` does that on request: once in a while it should, for a kept encoder
knows no category that came after it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from degre_prod.config import EvaluatorConfig, GeneratorConfig, RetrainConfig, Settings
    from degre_prod.schema import DataSchema
    from orchestration.retrain.champion import Champion

FREE = {"validation_start", "test_start", "constraints"}  # of a schema: may change without changing what a column means


@dataclass(frozen=True)
class Start:
    """What a night starts from (None: from nothing), its settings for that, and why, in words for the report."""

    encoder: Path | None
    evaluator: Path | None
    generator: Path | None
    settings: Settings
    reasons: tuple[str, ...]


def decide_start(champion: Champion | None, schema: DataSchema, settings: Settings, *, cold: bool) -> Start:
    """What of the champion is kept."""
    refused = _why_cold(champion, schema, cold)
    if champion is None or refused:
        return Start(None, None, None, settings, (f"everything from nothing: {refused}",))
    reasons = ["the champion's encoder, its statistics and vocabularies are kept"]
    evaluator, why = _evaluator(champion, settings.evaluator)
    reasons.append(f"the evaluator starts {f'from nothing: {why}' if why else 'from the champion’s weights'}")
    generator, why = _generator(champion, settings.generator)
    reasons.append(f"the generator starts {f'from nothing: {why}' if why else 'from the champion’s weights'}")
    if evaluator is not None:
        form = _spec(evaluator / "evaluator.json")["prefix_state"]
        settings = settings.model_copy(
            update={"evaluator": _warm_evaluator(settings.evaluator, settings.retrain, form)}
        )
    if generator is not None:
        settings = settings.model_copy(update={"generator": _warm_generator(settings.generator, settings.retrain)})
    return Start(champion.encoder, evaluator, generator, settings, tuple(reasons))


def _why_cold(champion: Champion | None, schema: DataSchema, cold: bool) -> str | None:
    from degre_prod.encoding.encoder import load_encoder

    if champion is None:
        return "there is no champion"
    if cold:
        return "--cold"
    before = load_encoder(champion.encoder).schema.model_dump(exclude=FREE)
    now = schema.model_dump(exclude=FREE)
    changed = sorted(name for name in now if before.get(name) != now[name])
    return f"schema.yaml has another {', '.join(changed)} than the champion's" if changed else None


def _evaluator(champion: Champion, settings: EvaluatorConfig) -> tuple[Path | None, str]:
    """The folder to start from, or why there is none."""
    folder = champion.evaluator
    if folder is None:
        return None, "the champion's evaluator does not lie beside its bundle"
    known = _spec(folder / "evaluator.json")
    wanted = {name: getattr(settings, name) for name in ("width", "layers", "head", "members")}
    if settings.prefix_state != "auto":
        wanted["prefix_state"] = settings.prefix_state
    return _same(folder, known, wanted, "evaluator")


def _generator(champion: Champion, settings: GeneratorConfig) -> tuple[Path | None, str]:
    known = {"decoder": "gru", **_spec(champion.bundle / "generator.json")}
    wanted = {name: getattr(settings, name) for name in ("width", "encoder_layers", "decoder")}
    return _same(champion.bundle, known, wanted, "generator")


def _same(folder: Path, known: dict[str, Any], wanted: dict[str, Any], section: str) -> tuple[Path | None, str]:
    differ = [
        f"{section}.{n} is {value}, the champion's {known.get(n)}"
        for n, value in wanted.items()
        if known.get(n) != value
    ]
    return (None, "; ".join(differ)) if differ else (folder, "")


def _warm_evaluator(settings: EvaluatorConfig, retrain: RetrainConfig, form: str) -> EvaluatorConfig:
    share = retrain.warm_epochs_share
    fewer = {
        name: math.ceil(getattr(settings, name) * share)
        for name in ("epochs", "attention_epochs", "min_steps", "togo_steps")
    }
    rate = settings.learning_rate * retrain.warm_learning_rate_share
    return settings.model_copy(update={**fewer, "learning_rate": rate, "prefix_state": form})


def _warm_generator(settings: GeneratorConfig, retrain: RetrainConfig) -> GeneratorConfig:
    epochs = max(math.ceil(settings.epochs * retrain.warm_epochs_share), settings.on_policy_rounds + 1)
    rate = settings.learning_rate * retrain.warm_learning_rate_share
    return settings.model_copy(update={"epochs": epochs, "learning_rate": rate})


def _spec(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))
