"""What the quality benchmark makes for one seed, each step a folder that is made once.

    seed-S/
      data/  training_set/  encoded/  evaluator/
      reference/          the reference lists' true values of the test requests
      mined-SHARE/        SHARE of the requests, each with all that mining gives
      generator-SHARE/
      answers/METHOD-SHARE/   its lists for the test requests, what it cost

An interrupted step starts again, so that its seconds are those of one go.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from degre_prod.artefact import digest, finished, made_from, publish, workplace, write_json
from degre_prod.baselines.calls import Calls, CountingEvaluator
from degre_prod.baselines.click_to_top import decoded
from degre_prod.baselines.material import Material, Ranker
from degre_prod.baselines.registry import GRADED, METHODS
from degre_prod.config import Settings
from degre_prod.encoding.encoder import load_encoder
from degre_prod.encoding.splits import encode_splits
from degre_prod.encoding.store import EncodedSet, load_encoded
from degre_prod.evaluation.enumeration import all_values
from degre_prod.mining.mine import minable_requests, mine, mine_requests
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.schema import load_schema
from degre_prod.training.evaluator import train_evaluator
from degre_prod.training.generator import train_generator
from degre_prod.training.modules import load_evaluator, load_generator
from degre_prod.worlds.reference import reference_values
from degre_prod.worlds.simulate import simulate
from degre_prod.worlds.truth import World, load_world
from orchestration.bench.direct_join import join_by_id

DEGRE = "degre"
_FORMAT = 1
_PROBE = 8  # requests mined once more through a counter; all of a world's requests cost the same


@dataclass(frozen=True)
class Plan:
    """What is measured, beside the seed: world, size, counts of requests, and the settings of evaluator, mining, generator."""

    world: str
    size: str
    logs: int
    test: int
    settings: Settings


@dataclass(frozen=True)
class Answer:
    """A method's lists (R, L) of the test requests and its price: learning apart from answering."""

    lists: np.ndarray
    train_calls: int
    train_seconds: float
    answer_calls: int
    answer_seconds: float


@dataclass(frozen=True)
class SeedRun:
    """One seed of a plan: its world and everything learnt from it."""

    folder: Path
    plan: Plan
    seed: int

    @property
    def settings(self) -> Settings:
        """The plan's settings with every seed replaced by this run's."""
        s = self.plan.settings
        return s.model_copy(
            update={
                name: getattr(s, name).model_copy(update={"seed": self.seed}) for name in ("evaluator", "generator")
            }
        )

    @property
    def dataset(self) -> Path:
        """The simulated data set."""
        return self.folder / "data"

    def prepare(self) -> None:
        """Simulate, join, encode."""
        plan = self.plan
        simulate(plan.world, plan.size, self.dataset, seed=self.seed, train=plan.logs, test=plan.test)
        rows, encoded = self.folder / "training_set", self.folder / "encoded"
        key = digest("join by id", _FORMAT, made_from(self.dataset))
        _step(rows, key, lambda place: join_by_id(self.dataset, place))
        schema = load_schema(self.dataset)
        _step(encoded, digest("encode", _FORMAT, key), lambda place: encode_splits(rows, schema, place))

    def train_evaluator(self) -> None:
        """Evaluator and value to go."""
        encoded, settings = self.folder / "encoded", self.settings.evaluator.model_dump()
        key = digest("evaluator", _FORMAT, made_from(encoded), settings)
        config = {"encoded": str(encoded), "evaluator": settings}
        _step(self.folder / "evaluator", key, lambda place: train_evaluator({**config, "folder": str(place)}))

    def find_reference(self) -> None:
        """True values of the reference lists; of all lists where there are few enough to enumerate."""
        key = digest("reference", _FORMAT, made_from(self.dataset))

        def work(place: Path) -> None:
            users, candidates = self.test_ids
            np.save(place / "best.npy", reference_values(self.truth, users, candidates)[0])
            if self.plan.size == "small":
                np.save(place / "all.npy", all_values(self.truth, users, candidates))

        _step(self.folder / "reference", key, work)

    def generator(self, share: float) -> Path:
        """Mine `share` of the requests and train a generator on them, with as many optimiser steps as for all of them."""
        evaluator, encoded = self.folder / "evaluator", self.folder / "encoded"
        mining = self.settings.mining
        mining = mining.model_copy(update={"requests": max(1, round(mining.requests * share))})
        learning = self.settings.generator
        learning = learning.model_copy(update={"epochs": max(1, round(learning.epochs / share))})
        mined, out = self.folder / f"mined-{share:g}", self.folder / f"generator-{share:g}"
        mined_key = digest("mined", _FORMAT, made_from(evaluator), mining.model_dump())
        config = {"encoded": str(encoded), "evaluator": str(evaluator), "mining": mining.model_dump()}
        _step(mined, mined_key, lambda place: mine({**config, "folder": str(place)}))
        key = digest("generator", _FORMAT, mined_key, learning.model_dump())
        learn = {"encoded": str(encoded), "mined": str(mined), "generator": learning.model_dump()}
        _step(out, key, lambda place: train_generator({**learn, "folder": str(place)}))
        return out

    @cached_property
    def truth(self) -> World:
        """The world; for measuring alone."""
        return load_world(self.dataset)

    @cached_property
    def test_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """User ids (R,) and candidate ids (R, C) of the test requests, the log's last ones."""
        import pyarrow.parquet as pq

        log = pq.read_table(self.dataset / "impressions.parquet", columns=["user_id", "candidate_ids"])
        log = log.slice(log.num_rows - self.plan.test)
        candidates = log["candidate_ids"].combine_chunks()
        return log["user_id"].to_numpy(), candidates.flatten().to_numpy().reshape(log.num_rows, -1)

    @cached_property
    def evaluator(self) -> LookaheadEvaluator:
        """The trained evaluator."""
        return load_evaluator(self.folder / "evaluator")

    def split(self, name: str) -> EncodedSet:
        """An encoded split."""
        return load_encoded(self.folder / "encoded" / name)

    @cached_property
    def mining_calls(self) -> int:
        """Evaluator calls that mining all requests takes: the budget of every method that learns from graded lists."""
        train, mining, calls = self.split("train"), self.settings.mining, Calls()
        requests = minable_requests(train, self.evaluator.spec.layout.list_length, mining.requests)
        probe = requests[:_PROBE]
        mine_requests(CountingEvaluator(self.evaluator, calls), train, probe, mining)
        return calls.count * len(requests) // len(probe)

    def material(self, share: float) -> Material:
        """What a baseline is given; `share` of the budget."""
        train, L = self.split("train"), self.evaluator.spec.layout.list_length
        schema = load_encoder(self.folder / "encoded" / "encoder.json").schema
        return Material(
            train=train,
            validation=self.split("validation"),
            layout=self.evaluator.spec.layout,
            slots=schema.logged_length,
            evaluator=self.evaluator,
            requests=minable_requests(train, L, self.settings.mining.requests),
            budget=int(self.mining_calls * share),
            generator=self.settings.generator,
            seed=self.seed,
        )

    def answer(self, method: str, share: float) -> Answer:
        """The method's lists on the test requests; learnt once. `share` matters to `degre` and the graded methods."""
        depends = method == DEGRE or method in GRADED
        out = self.folder / "answers" / (f"{method}-{share:g}" if depends else method)
        settings = {name: getattr(self.settings, name).model_dump() for name in ("mining", "generator")}
        key = digest("answer", _FORMAT, method, made_from(self.folder / "evaluator"), settings, share if depends else 1)
        _step(out, key, lambda place: self._answer(method, share, place))
        price = json.loads((out / "price.json").read_text())
        return Answer(np.load(out / "lists.npy"), **price)

    def _answer(self, method: str, share: float, place: Path) -> None:
        calls = Calls()
        rank: Ranker
        if method == DEGRE:
            folder = self.generator(share)
            rank = partial(decoded, load_generator(folder), length=self.evaluator.spec.layout.list_length)
            train_calls = int(self.mining_calls * share)
            train_seconds = seconds_of(folder) + seconds_of(self.folder / f"mined-{share:g}")
        else:
            material = self.material(share)
            started = time.perf_counter()
            rank = METHODS[method](material, calls)
            train_calls, train_seconds = calls.count, time.perf_counter() - started
        started = time.perf_counter()
        lists = rank(self.split("test"))
        price: dict[str, Any] = {
            "train_calls": train_calls,
            "train_seconds": train_seconds,
            "answer_calls": calls.count - train_calls if method != DEGRE else 0,
            "answer_seconds": time.perf_counter() - started,
        }
        np.save(place / "lists.npy", lists)
        write_json(place / "price.json", price)


def seconds_of(folder: Path) -> float:
    """How long the step took that made this folder."""
    return float(json.loads((folder / "seconds.json").read_text()))


def _step(folder: Path, key: str, work: Callable[[Path], None]) -> None:
    if finished(folder, key):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(workplace(folder, key))
    place = workplace(folder, key)
    started = time.perf_counter()
    work(place)
    write_json(place / "seconds.json", time.perf_counter() - started)
    for note in place.glob("progress-*.json"):
        note.unlink()
    publish(folder, key)
