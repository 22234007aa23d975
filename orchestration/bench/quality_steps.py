"""What the quality benchmark makes for one seed, each step a folder that is made once.

    seed-S/
      data/  training_set/  encoded/     the log; with -tau-… or -exploration-… behind the names where that is not as usual
      evaluator-KEY/  mined-KEY/  generator-KEY/  calls-KEY/  diagnostics-KEY/
      reference/                         true values of the reference lists and of a true-value beam
      exploration/  …  judge-KEY/        the judge's own log of random lists, and the judge
      answers/METHOD-SHARE-KEY/          its lists for the test requests, what it cost

KEY is the hash of all that the folder depends on, so settings that agree on a step share it. An interrupted step starts
again, so that its seconds are those of one go.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from degre_prod.artefact import digest, made_from, write_json
from degre_prod.baselines.calls import Calls, CountingEvaluator
from degre_prod.baselines.click_to_top import decoded
from degre_prod.baselines.material import Material, Ranker
from degre_prod.baselines.registry import GRADED, METHODS
from degre_prod.config import GeneratorConfig, MiningConfig, Settings
from degre_prod.encoding.encoder import load_encoder
from degre_prod.encoding.store import EncodedSet, load_encoded
from degre_prod.evaluation.diagnostics import break_down, diagnose
from degre_prod.evaluation.enumeration import all_values
from degre_prod.mining.beam import Leaves
from degre_prod.mining.mine import minable_requests, mine, mine_requests
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.models.generator import Generator
from degre_prod.models.judge import Judge
from degre_prod.training.evaluator import train_evaluator
from degre_prod.training.generator import generator_spec, train_generator
from degre_prod.training.judge import train_judge
from degre_prod.training.modules import load_evaluator, load_generator, load_judge
from degre_prod.training.own_lists import own_lists
from degre_prod.worlds.reference import reference_values, true_beam_values
from degre_prod.worlds.simulate import simulate
from degre_prod.worlds.spec import LOGGING_TEMPERATURE
from degre_prod.worlds.truth import World, load_world
from orchestration.bench.quality_budget import cheaper, shortened
from orchestration.bench.quality_folders import FORMAT, encode, keep_newest, seconds_of, step
from orchestration.bench.quality_variants import VARIANTS

DEGRE = "degre"
TRUE_BEAM = {"small": 8, "large": 32}  # widths of the true-value beams of METHOD §2 and §6
_PROBE = 8  # requests mined once more through a counter; all of a world's requests cost the same


@dataclass(frozen=True)
class Plan:
    """What is measured, beside the seed: world, size, counts of requests, settings, and what the log is like.

    `tau`: temperature of the logging policy · `exploration`: share of logged requests that show a random list ·
    `log_share`: how much of the training log is used, its newest part.
    """

    world: str
    size: str
    logs: int
    test: int
    settings: Settings
    tau: float = LOGGING_TEMPERATURE
    exploration: float = 0.0
    log_share: float = 1.0


@dataclass(frozen=True)
class Answer:
    """A method's lists (R, L) of the test requests and its price, in CPU seconds: learning apart from answering."""

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
        sections = ("evaluator", "generator", "judge")
        return s.model_copy(update={name: getattr(s, name).model_copy(update={"seed": self.seed}) for name in sections})

    def variant(self, method: str) -> SeedRun:
        """The run whose settings this row of the table was learnt with: another one for a name in VARIANTS."""
        if method not in VARIANTS:
            return self
        return replace(self, plan=replace(self.plan, settings=VARIANTS[method](self.plan.settings)))

    @property
    def _suffix(self) -> str:
        told = {"tau": (self.plan.tau, LOGGING_TEMPERATURE), "exploration": (self.plan.exploration, 0.0)}
        return "".join(f"-{name}-{value:g}" for name, (value, usual) in told.items() if value != usual)

    @cached_property
    def dataset(self) -> Path:
        """The simulated data set."""
        plan, folder = self.plan, self.folder / f"data{self._suffix}"
        simulate(
            plan.world,
            plan.size,
            folder,
            seed=self.seed,
            train=plan.logs,
            test=plan.test,
            tau=plan.tau,
            exploration=plan.exploration,
        )
        return folder

    @cached_property
    def encoded(self) -> Path:
        """Joined, encoded: the folder of the splits and the encoder."""
        plan = self.plan
        whole = encode(
            self.dataset, self.folder / f"training_set{self._suffix}", self.folder / f"encoded{self._suffix}"
        )
        if plan.log_share == 1:
            return whole
        key = digest("newest", FORMAT, made_from(whole), plan.log_share)
        return self.made("encoded", key, lambda place: keep_newest(whole, plan.log_share, place))

    @cached_property
    def evaluator_folder(self) -> Path:
        """Evaluator and value to go."""
        settings = self.settings.evaluator.model_dump()
        key = digest("evaluator", FORMAT, made_from(self.encoded), settings)
        config = {"encoded": str(self.encoded), "evaluator": settings}
        return self.made("evaluator", key, lambda place: train_evaluator({**config, "folder": str(place)}))

    @cached_property
    def reference(self) -> Path:
        """True values of the reference lists, of a true-value beam's, and of all lists where they can be enumerated."""
        width = TRUE_BEAM[self.plan.size]
        key = digest("reference", FORMAT, made_from(self.dataset), width)
        folder = self.folder / f"reference{self._suffix}"

        def work(place: Path) -> None:
            users, candidates = self.test_ids
            np.save(place / "best.npy", reference_values(self.truth, users, candidates)[0])
            np.save(place / "true_beam.npy", true_beam_values(self.truth, users, candidates, width))
            if self.plan.size == "small":
                np.save(place / "all.npy", all_values(self.truth, users, candidates))

        step(folder, key, work)
        return folder

    @cached_property
    def judge_folder(self) -> Path:
        """A judge trained on a log of random lists of its own, encoded as this run's log is."""
        log, rows, out = (self.folder / name for name in ("exploration", "exploration_rows", "exploration_encoded"))
        plan, settings = self.plan, self.settings.judge.model_dump()
        simulate(plan.world, plan.size, log, seed=self.seed, train=plan.logs, test=1, exploration=1.0, traffic=1)
        encoded = encode(log, rows, out, encoder=self.encoded / "encoder.json")
        key = digest("judge", FORMAT, made_from(encoded), settings)
        config = {"encoded": str(encoded), "judge": settings, "requests": "all"}
        return self.made("judge", key, lambda place: train_judge({**config, "folder": str(place)}))

    @cached_property
    def diagnostics(self) -> dict[str, Any]:
        """How far this run's evaluator can be believed."""
        key = digest("diagnostics", FORMAT, made_from(self.evaluator_folder), made_from(self.dataset), self.plan.test)

        def work(place: Path) -> None:
            held_out = (self.split("test"), self.truth, *self.test_ids)
            found = asdict(diagnose(self.evaluator, *held_out))
            detail = asdict(break_down(self.evaluator, self.split("validation"), *held_out))
            write_json(place / "diagnostics.json", found | {"detail": detail})

        return dict(json.loads((self.made("diagnostics", key, work) / "diagnostics.json").read_text()))

    def mining(self, share: float) -> MiningConfig:
        """How requests are mined for `share` of the evaluator calls of `mining_calls`."""
        usual = self.settings.mining
        if share == 1:
            return usual
        less = cheaper(usual)
        affordable = int(self.mining_calls * share / self.calls_per_request(less))
        return less.model_copy(update={"requests": min(max(1, affordable), len(self.minable))})

    def learning(self, share: float) -> GeneratorConfig:
        """How the generator learns from what is mined for `share` of the calls."""
        learning = self.settings.generator
        return learning if share == 1 else shortened(learning, self.mining(share).requests / len(self.minable))

    def mined(self, share: float) -> Path:
        """Lists mined for `share` of the calls."""
        mining = self.mining(share)
        key = digest("mined", FORMAT, made_from(self.evaluator_folder), mining.model_dump())
        config = {"encoded": str(self.encoded), "evaluator": str(self.evaluator_folder), "mining": mining.model_dump()}
        return self.made("mined", key, lambda place: mine({**config, "folder": str(place)}))

    def generator(self, share: float) -> Path:
        """A generator of what was mined for `share` of the calls."""
        mined, learning = self.mined(share), self.learning(share)
        key = digest("generator", FORMAT, made_from(mined), learning.model_dump())
        learn = {"encoded": str(self.encoded), "mined": str(mined), "generator": learning.model_dump()}
        learn |= {"evaluator": str(self.evaluator_folder), "mining": self.settings.mining.model_dump()}
        return self.made("generator", key, lambda place: train_generator({**learn, "folder": str(place)}))

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
        return load_evaluator(self.evaluator_folder, pessimism=self.settings.mining.pessimism)

    @cached_property
    def judge(self) -> Judge:
        """The trained judge."""
        return load_judge(self.judge_folder)

    def split(self, name: str) -> EncodedSet:
        """An encoded split."""
        return load_encoded(self.encoded / name)

    @cached_property
    def minable(self) -> np.ndarray:
        """The training requests that are mined with all calls."""
        return minable_requests(
            self.split("train"), self.evaluator.spec.layout.list_length, self.settings.mining.requests
        )

    @property
    def mining_calls(self) -> int:
        """Evaluator calls that mining all requests takes, the generator's own lists included: the budget of every method that
        learns from graded lists."""
        return int(self.calls_per_request(self.settings.mining) * len(self.minable))

    def spent(self, share: float) -> int:
        """Evaluator calls that `degre` takes of `share` of the budget."""
        mining = self.mining(share)
        return int(self.calls_per_request(mining) * min(mining.requests, len(self.minable)))

    def calls_per_request(self, mining: MiningConfig) -> float:
        """Evaluator calls of mining a request, the generator's own lists included."""
        rounds = self.settings.generator.on_policy_rounds
        how = mining.model_dump(exclude={"requests"})
        key = digest("calls", FORMAT, made_from(self.evaluator_folder), how, rounds)

        def work(place: Path) -> None:
            train, calls, probe = self.split("train"), Calls(), self.minable[:_PROBE]
            counting = CountingEvaluator(self.evaluator, calls)
            mined = mine_requests(counting, train, probe, mining)
            kept = Leaves(torch.from_numpy(mined["lists"].astype(np.int64)), torch.from_numpy(mined["utility"]))
            untrained = Generator(generator_spec(self.evaluator.spec.layout, self.settings.generator))
            for _ in range(rounds):
                own_lists(untrained, counting, train, probe, kept, mining)
            write_json(place / "calls.json", calls.count / len(probe))

        return float(json.loads((self.made("calls", key, work) / "calls.json").read_text()))

    def material(self, share: float) -> Material:
        """What a baseline is given; `share` of the budget."""
        schema = load_encoder(self.encoded / "encoder.json").schema
        return Material(
            train=self.split("train"),
            validation=self.split("validation"),
            layout=self.evaluator.spec.layout,
            slots=schema.logged_length,
            evaluator=self.evaluator,
            requests=self.minable,
            budget=int(self.mining_calls * share),
            generator=self.settings.generator,
            seed=self.seed,
        )

    def answer(self, method: str, share: float) -> Answer:
        """The method's lists on the test requests; learnt once. `share` matters to `degre`, its variants and the graded
        methods."""
        run = self.variant(method)
        depends = is_priced(method)
        how = (
            (run.mining(share), run.learning(share))
            if is_ours(method)
            else (run.settings.mining, run.settings.generator)
        )
        settings = dict(zip(("mining", "generator"), (h.model_dump() for h in how), strict=True))
        key = digest("answer", FORMAT, method, made_from(run.evaluator_folder), settings, share if depends else 1)
        name = f"answers/{method}-{share:g}" if depends else f"answers/{method}"
        out = self.made(name, key, lambda place: run._answer(method, share, place))
        price = json.loads((out / "price.json").read_text())
        return Answer(np.load(out / "lists.npy"), **price)

    def _answer(self, method: str, share: float, place: Path) -> None:
        calls = Calls()
        rank: Ranker
        ours = is_ours(method)
        if ours:
            folder = self.generator(share)
            rank = partial(decoded, load_generator(folder), length=self.evaluator.spec.layout.list_length)
            train_calls = self.spent(share)
            train_seconds = seconds_of(folder) + seconds_of(self.mined(share))
        else:
            material = self.material(share)
            started = time.process_time()
            rank = METHODS[method](material, calls)
            train_calls, train_seconds = calls.count, time.process_time() - started
        started = time.process_time()
        lists = rank(self.split("test"))
        price: dict[str, Any] = {
            "train_calls": train_calls,
            "train_seconds": train_seconds,
            "answer_calls": 0 if ours else calls.count - train_calls,
            "answer_seconds": time.process_time() - started,
        }
        np.save(place / "lists.npy", lists)
        write_json(place / "price.json", price)

    def made(self, name: str, key: str, work: Callable[[Path], None]) -> Path:
        folder = self.folder / f"{name}-{key[:8]}"
        step(folder, key, work)
        return folder


def is_ours(method: str) -> bool:
    """`degre` or one of its variants."""
    return method == DEGRE or method in VARIANTS


def is_priced(method: str) -> bool:
    """Whether the method's value depends on how many evaluator calls it may spend."""
    return is_ours(method) or method in GRADED
