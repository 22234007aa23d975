"""`degre bench quality --trivago PATH`: agreement with real clicks, every method on the same encoded features (METHOD §8).

The last day of the log is the test, the last 15 % of the click-outs before it stop the training early and choose
LightGBM's settings. Measure: MRR of the clicked item, the items a list leaves out following in shown order. A list
without a click has no rank and is left out (its share is in the document; this log has none). Clicks are biased by the shown
position, so nothing is claimed here about lookahead.

    out/
      data/  training_set/  encoded/     shared by all seeds
      seed-S/evaluator/  mined/  generator/  answers/METHOD/
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from degre_prod.artefact import digest, finished, made_from, publish, workplace, write_json
from degre_prod.baselines.calls import Calls
from degre_prod.baselines.click_to_top import decoded
from degre_prod.baselines.lambdarank import TRIALS, lambdarank
from degre_prod.baselines.material import Material, Ranker
from degre_prod.baselines.registry import METHODS
from degre_prod.config import ScalingConfig, Settings
from degre_prod.datasets.trivago import convert
from degre_prod.encoding.splits import split_rows
from degre_prod.encoding.store import EncodedSet, load_encoded
from degre_prod.evaluation.methods import last_interacted_first
from degre_prod.evaluation.metrics import first_positive, reciprocal_ranks
from degre_prod.mining.mine import minable_requests
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.schema import DataSchema, load_schema
from degre_prod.training.modules import load_evaluator, load_generator
from orchestration import stages
from orchestration.run import Run, create_run

DEGRE, LAST_INTERACTED, LAMBDARANK = "degre", "last_interacted_first", "lambdarank"
LEARNT: Final = ("pointwise", LAMBDARANK, "click_to_top", "prm", "greedy_evaluator", "beam_evaluator", DEGRE)
ROWS: Final = ("input_order", LAST_INTERACTED, *LEARNT)
WANTED: Final = {"generator_minus_lambdarank": -0.005, "mrr": 0.605}
_FORMAT = 1
_DRAWS = 2000


def bench_trivago(source: Path, seeds: int, *, settings: Settings, out: Path) -> dict[str, Any]:
    """Measure, write trivago.json into `out` and return the document; what is done is not done again.

    `source`: events.parquet or the owner's csv. Every network and LightGBM are trained anew for each seed, on one thread in
    this process. Raises DataError for a source that cannot be used.
    """
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    convert(source, out / "data", say=lambda text: print(text, file=sys.stderr))
    shared = create_run(out, out / "data", settings)
    stages.build_training_rows(shared)
    stages.encode(shared)
    runs = [SeedRun(shared, seed) for seed in range(seeds)]
    lists: dict[str, list[np.ndarray]] = {name: [] for name in ROWS}
    for run in runs:
        for name in ROWS:
            print(f"seed {run.seed}: {name}", file=sys.stderr, flush=True)
            lists[name].append(run.answer(name))
    document = summarise(load_encoded(shared.encoded / "test"), runs[0].users, lists)
    write_json(out / "trivago.json", document)
    return document


def summarise(test: EncodedSet, users_R: np.ndarray, lists: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """The document from every method's lists, one array a seed."""
    clicked = first_positive(test)
    has, later = clicked >= 0, clicked > 0
    values = {name: np.stack([reciprocal_ranks(of_seed, clicked)[has] for of_seed in of]) for name, of in lists.items()}
    difference = values[DEGRE] - values[LAMBDARANK]
    means = {name: value.mean(0) for name, value in values.items()}
    intervals = by_user({**means, "difference": difference.mean(0)}, users_R[has])
    methods = {
        name: {
            "mrr": float(value.mean()),
            "interval": intervals[name],
            "mrr_not_first": float(value[:, later[has]].mean()),
            "by_seed": value.mean(1).tolist(),
        }
        for name, value in values.items()
    }
    return {
        "dataset": "trivago",
        "seeds": list(range(len(lists[DEGRE]))),
        "test_requests": len(test),
        "clicks": int(has.sum()),
        "clicks_not_first": int(later.sum()),
        "users": len(np.unique(users_R[has])),
        "without_a_click": float(1 - has.mean()),
        "convention": "lists without a click are left out; items a list leaves out follow it in shown order",
        "methods": methods,
        "generator_minus_lambdarank": {
            "mean": float(difference.mean()),
            "interval": intervals["difference"],
            "by_seed": difference.mean(1).tolist(),
        },
        "wanted": WANTED,
    }


def by_user(values: dict[str, np.ndarray], users_R: np.ndarray, *, seed: int = 0) -> dict[str, list[float]]:
    """95 % percentile intervals of the means of each entry (R,), users drawn anew with all their requests; every entry sees
    the same draws, so differences are paired."""
    _, user_R = np.unique(users_R, return_inverse=True)
    stacked = np.stack(list(values.values()))
    sums_NU = np.stack([np.bincount(user_R, weights=row) for row in stacked])
    count_U = np.bincount(user_R)
    U = len(count_U)
    random = np.random.default_rng(seed)
    drawn = [np.bincount(random.integers(0, U, U), minlength=U) for _ in range(_DRAWS)]
    means_DN = np.stack([sums_NU @ times / (count_U @ times) for times in drawn])
    low, high = np.percentile(means_DN, [2.5, 97.5], axis=0)
    return {name: [float(low[n]), float(high[n])] for n, name in enumerate(values)}


@dataclass(frozen=True)
class SeedRun:
    """One seed: its networks and answers, on what all seeds share."""

    shared: Run
    seed: int

    @cached_property
    def run(self) -> Run:
        """A run in seed-S/ over the shared training set and encoding, in this process."""
        folder = self.shared.folder / f"seed-{self.seed}"
        folder.mkdir(exist_ok=True)
        for part in (self.shared.training_set, self.shared.encoded):
            link = folder / part.name
            if not link.exists():
                link.symlink_to(Path("..") / part.name, target_is_directory=True)
        s = self.shared.settings
        seeded = {n: getattr(s, n).model_copy(update={"seed": self.seed}) for n in ("evaluator", "generator")}
        return create_run(
            folder,
            self.shared.dataset,
            s.model_copy(update={**seeded, "scaling": ScalingConfig(num_workers=0)}),
        )

    @cached_property
    def schema(self) -> DataSchema:
        """The data set's schema."""
        return load_schema(self.shared.dataset)

    @cached_property
    def users(self) -> np.ndarray:
        """User id of every test request, (R,)."""
        rows = split_rows(self.shared.training_set, self.schema, "test")
        return np.array([str(row.request.user_id) for row in rows])

    @cached_property
    def evaluator(self) -> LookaheadEvaluator:
        """Trained when it is first asked for."""
        stages.train_evaluator(self.run)
        return load_evaluator(self.run.evaluator)

    def split(self, name: str) -> EncodedSet:
        """An encoded split."""
        return load_encoded(self.shared.encoded / name)

    def answer(self, method: str) -> np.ndarray:
        """The method's lists (R, L) of the test requests, learnt once."""
        settings = {
            name: getattr(self.run.settings, name).model_dump() for name in ("evaluator", "mining", "generator")
        }
        key = digest("trivago answer", _FORMAT, method, made_from(self.shared.encoded), settings)
        folder = self.run.folder / "answers" / method
        if not finished(folder, key):
            folder.parent.mkdir(exist_ok=True)
            np.save(workplace(folder, key) / "lists.npy", self._ranker(method)(self.split("test")))
            publish(folder, key)
        lists: np.ndarray = np.load(folder / "lists.npy")
        return lists

    def _ranker(self, method: str) -> Ranker:
        L = self.schema.list_length
        if method == LAST_INTERACTED:
            rows = list(split_rows(self.shared.training_set, self.schema, "test"))
            ids, events = [r.request.candidate_ids for r in rows], [r.request.recent_events for r in rows]
            return lambda _: last_interacted_first(ids, events, L)
        if method == DEGRE:
            _ = self.evaluator
            stages.mine(self.run)
            stages.train_generator(self.run)
            return partial(decoded, load_generator(self.run.generator), length=L)
        material = self._material()
        return best_lambdarank(material) if method == LAMBDARANK else METHODS[method](material, Calls())

    def _material(self) -> Material:
        train = self.split("train")
        return Material(
            train=train,
            validation=self.split("validation"),
            layout=self.evaluator.spec.layout,
            slots=self.schema.logged_length,
            evaluator=self.evaluator,
            requests=minable_requests(train, self.schema.list_length, self.run.settings.mining.requests),
            budget=0,  # no method here learns from graded lists
            generator=self.run.settings.generator,
            seed=self.seed,
        )


def best_lambdarank(material: Material) -> Ranker:
    """The trial settings with the highest MRR on the validation split."""
    clicked = first_positive(material.validation)
    rankers = [lambdarank(material, Calls(), config) for config in TRIALS]
    values = [np.nanmean(reciprocal_ranks(rank(material.validation), clicked)) for rank in rankers]
    return rankers[int(np.argmax(values))]


def print_table(document: dict[str, Any]) -> None:
    """The document's methods on stdout, best first."""
    table = Table(title=f"MRR of {document['clicks']} clicks of the last day, seeds {document['seeds']}")
    for column in ("method", "MRR", "95 %", "not at rank 1", "by seed"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, m in sorted(document["methods"].items(), key=lambda item: -item[1]["mrr"]):
        low, high = m["interval"]
        seeds = " ".join(f"{value:.4f}" for value in m["by_seed"])
        table.add_row(name, f"{m['mrr']:.4f}", f"{low:.4f} … {high:.4f}", f"{m['mrr_not_first']:.4f}", seeds)
    console = Console(width=120)
    console.print(table)
    d = document["generator_minus_lambdarank"]
    console.print(
        f"degre − lambdarank: {d['mean']:+.4f}, 95 % {d['interval'][0]:+.4f} … {d['interval'][1]:+.4f} (by user)"
    )
