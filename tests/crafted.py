"""Small random requests, really encoded, and networks with random weights: what the tests of the method stand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from degre_prod.encoding.encoder import Encoder, save_encoder
from degre_prod.encoding.fit import fit_encoder
from degre_prod.encoding.store import EncodedSet, load_encoded, save_encoded
from degre_prod.models.decoders import DecoderForm
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.models.generator import Generator, GeneratorSpec
from degre_prod.models.member import EvaluatorSpec
from degre_prod.requests import FeatureColumns, RecentEvent, Request
from degre_prod.schema import DataSchema, Feature, FeatureTable, Objective
from degre_prod.training.data import TensorBatch

Row = tuple[Request, FeatureColumns, FeatureColumns]
L, N = 3, 6  # slots, and candidates of a full request
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
torch.set_num_threads(1)  # as the workers do; these sizes only lose by more


@dataclass(frozen=True)
class Crafted:
    """Requests, the encoder fitted on them, and one encoded split."""

    rows: list[Row]
    encoder: Encoder
    encoded: EncodedSet


def schema(**changes: Any) -> DataSchema:
    """Lists of 3 out of at most 6 candidates, two objectives, the second earned once at most."""
    settings: dict[str, Any] = {
        "name": "crafted",
        "id_type": "int64",
        "list_length": L,
        "max_candidates": N,
        "objectives": (Objective(name="click"), Objective(name="order", weight=3.0, at_most_one=True)),
        "user": FeatureTable(features=(Feature(name="taste", kind="vector", size=2),)),
        "item": FeatureTable(
            features=(
                Feature(name="style", kind="vector", size=2),
                Feature(name="quality", kind="numeric"),
                Feature(name="group", kind="categorical"),
            )
        ),
        "scores": ("upstream",),
    }
    return DataSchema(**(settings | changes))


def rich(**changes: Any) -> dict[str, Any]:
    """Changes to `schema` that declare all that `rows` has to offer."""

    def categorical(*names: str) -> tuple[Feature, ...]:
        return tuple(Feature(name=name, kind="categorical") for name in names)

    taste, age = Feature(name="taste", kind="vector", size=2), Feature(name="age", kind="numeric", transform="log1p")
    history = Feature(name="history", kind="id_sequence", max_length=3)
    return {
        "user": FeatureTable(features=(taste, age, history, *categorical("segment"))),
        "context": (Feature(name="hour", kind="numeric"), *categorical("device", "country")),
        "candidate_features": (Feature(name="discount", kind="numeric"), *categorical("badge")),
        "recent_event_types": ("click", "save"),
    } | changes


def rows(counts: Sequence[int], seed: int = 0) -> list[Row]:
    """One request for each number of candidates."""
    rng, more = np.random.default_rng(seed), np.random.default_rng([seed, 2])

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    out = []
    for r, n in enumerate(counts):
        ids = [int(i) for i in rng.permutation(1000)[:n]]
        now_us = 1_767_225_600_000_000 + r * 1_000_000
        touched = more.choice(ids, more.integers(0, 4))
        kinds = more.choice(["click", "save"], len(touched))
        discount = np.where(more.random(n) < 0.3, np.nan, more.random(n)).astype(np.float32)
        request = Request(
            request_id=f"r{r}",
            user_id=r,
            event_timestamp_us=now_us,
            candidate_ids=ids,
            context={
                "hour": float(more.integers(0, 24)) if r % 4 else None,
                "device": str(more.choice(["phone", "desk"])),
                "country": str(more.choice(["de", "no", "jp"])),
            },
            scores={"upstream": np.sort(normal(n))[::-1].copy()},
            candidate_features={"discount": discount, "badge": [*more.choice(["new", None], n)]},
            recent_events=[
                RecentEvent(int(item), str(kind), now_us - 1_000_000 * (len(touched) - i))
                for i, (item, kind) in enumerate(zip(touched, kinds, strict=True))
            ],
        )
        user = {
            "taste": normal(1, 2),
            "age": np.array([np.nan if r % 5 == 0 else more.integers(18, 80)], np.float32),
            "history": [None if r % 3 == 0 else [int(i) for i in more.choice(ids, min(n, 3), replace=False)]],
            "segment": [None if r % 6 == 0 else str(more.choice(["x", "y"]))],
        }
        groups = [str(g) for g in rng.choice(["a", "b", "c"], n)]
        items = {"style": normal(n, 2), "quality": normal(n), "group": groups}
        out.append((request, FeatureColumns(user, 1), FeatureColumns(items, n)))
    return out


def crafted(folder: Path, counts: Sequence[int] = (N,) * 8, seed: int = 0, **changes: Any) -> Crafted:
    """Encode random requests into `folder` (encoder.json, train/, validation/) with random logged lists and feedback."""
    of = schema(**changes)
    known = rows(counts, seed)
    encoder = fit_encoder(of, known)
    rng = np.random.default_rng([seed, 1])
    O = len(of.objectives)
    shown = [rng.permutation(n)[: of.list_length] for n in counts]
    feedback = [(rng.random((O, len(s))) < 0.4).astype(np.float32) for s in shown]
    for o, objective in enumerate(of.objectives):
        if objective.at_most_one:
            for f in feedback:
                f[o] *= np.cumsum(f[o]) <= 1
    save_encoder(encoder, folder / "encoder.json")
    for split in ("train", "validation"):
        save_encoded(
            folder / split,
            [encoder.encode(*row) for row in known],
            shown=shown,
            feedback=feedback,
            request_ids=[request.request_id for request, _, _ in known],
            timestamps=[request.event_timestamp_us for request, _, _ in known],
        )
    return Crafted(known, encoder, load_encoded(folder / "train"))


def evaluator(
    encoder: Encoder,
    form: str = "additive",
    *,
    head: str = "count_markov",
    members: int = 1,
    pessimism: float = 0.0,
    seed: int = 0,
    scale: float = 0.3,
) -> LookaheadEvaluator:
    """Random weights, wide enough apart that every list has a value of its own; slot weights fall from 1."""
    layout, of = encoder.layout(), encoder.schema
    slots = np.arange(1, of.list_length + 1)
    weights = tuple(tuple(float(o.weight / s) for s in slots) for o in of.objectives)
    once = tuple(o.at_most_one for o in of.objectives)
    spec = EvaluatorSpec(layout, form, 8, 2, once, weights, mean_utility=0.7, head=head, members=members)
    return _randomised(LookaheadEvaluator(spec, pessimism=pessimism), seed, scale).eval()


def generator(
    encoder: Encoder, *, decoder: DecoderForm = "gru", width: int = 16, seed: int = 0, scale: float = 0.3
) -> Generator:
    """Random weights, far enough from the usual start that logits differ."""
    return _randomised(Generator(GeneratorSpec(encoder.layout(), width, 1, decoder)), seed, scale).eval()


def _randomised(model: Any, seed: int, scale: float) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale)
    return model


def zeroed(model: Any) -> Any:
    """All weights zero: everything is worth the same."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def random_lists(batch: TensorBatch, length: int = L, seed: int = 0) -> Tensor:
    """One full list of distinct candidates a request, lists_BL."""
    rng = np.random.default_rng(seed)
    counts = batch["mask"].sum(1).tolist()
    return torch.from_numpy(np.stack([rng.permutation(n)[:length] for n in counts]))


def all_lists(n: int = N, length: int = L) -> Tensor:
    """Every list of distinct candidates: (n! / (n − length)!, length), in lexicographic order."""
    return torch.tensor(list(permutations(range(n), length)))


def of_all_lists(model: LookaheadEvaluator, batch: TensorBatch, r: int, n: int = N) -> tuple[Tensor, Tensor]:
    """Every list of request `r` and its utility, along the whole list at once."""
    lists = all_lists(n, model.spec.layout.list_length)
    one = {name: value[r : r + 1].expand(len(lists), *value.shape[1:]) for name, value in batch.items()}
    return lists, model.utilities(one, lists)[:, -1]


def permuted(batch: TensorBatch, order: Tensor) -> TensorBatch:
    """The same requests with candidate order[c] in place c; prior ranks go with their candidates."""
    by_request = ("user", "context")
    return {name: v if name.startswith(by_request) else v[:, order] for name, v in batch.items()}


def padded(batch: TensorBatch, extra: int) -> TensorBatch:
    """The same requests with `extra` places of padding, filled with what must not matter."""
    out = {}
    for name, value in batch.items():
        if name.startswith(("user", "context")):
            out[name] = value
            continue
        filler = value[:, :1].expand(-1, extra, *value.shape[2:])
        if name == "mask":
            filler = torch.zeros_like(filler)
        elif value.is_floating_point():
            filler = filler * 3 + 5
        out[name] = torch.cat([value, filler], dim=1)
    return out
