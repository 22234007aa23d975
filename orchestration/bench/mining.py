"""`degre bench mining`: requests a second of mining, one core and two workers, against encoding every prefix anew.

n = 50, L = 10, K = 8, the large mixed world's features, default settings, random weights (time does not depend on them), one
member: an ensemble of two costs either side twice as much.
    default      the miner of `degre mine` with the prefix state `products`, the form that is mostly chosen at large sizes
    additive     the same with the form that is chosen otherwise
    attention    the same with cached attention states (2 layers)
    reencoding   the attention evaluator without prefix states (orchestration.bench.reencoding), tokens kept
    reencoding from fields    the same, tokens made anew as well
`search` is the union of both beams, the same search for all five; `mining` is all of `mine_requests`. One core is timed in
processor seconds of one thread, which on an idle machine are seconds; workers in seconds.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from degre_prod.artefact import write_json
from degre_prod.config import EvaluatorConfig, MiningConfig, RayConfig, ScalingConfig
from degre_prod.encoding.encoder import load_encoder
from degre_prod.encoding.splits import encode_splits
from degre_prod.encoding.store import EncodedSet, load_encoded
from degre_prod.mining.beam import union_search
from degre_prod.mining.mine import mine, mine_requests
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.schema import load_schema
from degre_prod.training.data import to_batch
from degre_prod.training.evaluator import evaluator_spec
from degre_prod.training.group import current_worker
from degre_prod.training.launch import run_group
from degre_prod.training.memory import keep_freed_memory
from degre_prod.training.modules import save_module
from degre_prod.worlds.simulate import simulate
from orchestration.bench.direct_join import join_by_id
from orchestration.bench.reencoding import ReencodingEvaluator
from orchestration.bench.report import machine
from orchestration.bench.timing import one_core
from serving.cluster import ray_cluster

WANTED = {"times_reencoding": 20.0, "two_workers_over_one": 1.8}
_FEW = 4  # requests the slow side is timed on; it gains nothing from larger chunks


@dataclass(frozen=True)
class Bed:
    """Encoded requests (train/ below `folder`), and evaluators with random weights by form below `folder`."""

    folder: Path
    encoded: EncodedSet
    models: dict[str, LookaheadEvaluator]


def make_bed(folder: Path, requests: int, *, size: str = "large") -> Bed:
    """A simulated log of `requests`, encoded, and an evaluator of each prefix form."""
    simulate("mixed", size, folder / "data", train=requests, validation=2, test=2)
    (folder / "rows").mkdir()
    join_by_id(folder / "data", folder / "rows")
    encode_splits(folder / "rows", load_schema(folder / "data"), folder)
    encoded, encoder = load_encoded(folder / "train"), load_encoder(folder / "encoder.json")
    models = {}
    for form in ("products", "additive", "attention"):
        torch.manual_seed(0)
        spec = evaluator_spec(encoder.schema, encoder.layout(), EvaluatorConfig(members=1), form, encoded)
        models[form] = LookaheadEvaluator(spec).eval()
        (folder / form).mkdir()
        save_module(models[form], spec, folder / form, "evaluator")
    return Bed(folder, encoded, models)


def bench_mining(
    *, requests: int = 128, repeats: int = 3, group_requests: int = 16_384, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure and return the document. `requests`: of one timing on one core; `group_requests`: of a worker group's run."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as in a worker
    with tempfile.TemporaryDirectory() as folder:
        bed = make_bed(Path(folder), max(requests, group_requests))
        say("one core")
        with one_core():
            one = measure_one_core(bed, requests, repeats)
        say("worker groups")
        group = measure_workers(bed, group_requests, repeats, say)
    settings = MiningConfig()
    return {
        "candidates": bed.encoded.max_candidates,
        "length": bed.models["products"].spec.layout.list_length,
        "beam_width": settings.beam_width,
        "settings": settings.model_dump(),
        "search": one["search"],
        "mining": one["mining"],
        "times_reencoding": one["search"]["default"]["requests_per_s"] / one["search"]["reencoding"]["requests_per_s"],
        "times_reencoding_mining": one["mining"]["default"]["requests_per_s"]
        / one["mining"]["reencoding"]["requests_per_s"],
        "workers": group,
        "two_workers_over_one": group["two"]["requests_per_s"] / group["one"]["requests_per_s"],
        "wanted": WANTED,
        "machine": machine(),
    }


@torch.inference_mode()
def measure_one_core(bed: Bed, requests: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Requests a processor second by what is timed and by form; every form once in each repeat, in turn."""
    attention = bed.models["attention"]
    forms: dict[str, tuple[LookaheadEvaluator, int]] = {
        "default": (bed.models["products"], requests),
        "additive": (bed.models["additive"], requests),
        "attention": (attention, requests),
        "reencoding": (ReencodingEvaluator(attention, "tokens"), _FEW),
        "reencoding from fields": (ReencodingEvaluator(attention, "fields"), _FEW),
    }
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in ("search", "mining")}
    for repeat in range(repeats + 1):  # the first one warms up
        for form, (model, count) in forms.items():
            index = np.arange(count)
            for name, work in (("search", _search), ("mining", _mine)):
                if form == "reencoding from fields" and name != "search":
                    continue
                started = time.process_time()
                work(model, bed.encoded, index)
                if repeat:
                    seconds[name].setdefault(form, []).append((time.process_time() - started) / count)
    return {name: {form: _rate(of) for form, of in by_form.items()} for name, by_form in seconds.items()}


def _rate(seconds: list[float]) -> dict[str, Any]:
    return {"requests_per_s": 1 / median(seconds), "repeats": [1 / s for s in seconds]}


def _chunks(requests: np.ndarray) -> list[np.ndarray]:
    size = MiningConfig().chunk_size
    return [requests[i : i + size] for i in range(0, len(requests), size)]


def _search(model: LookaheadEvaluator, encoded: EncodedSet, requests: np.ndarray) -> None:
    for part in _chunks(requests):
        batch = to_batch(encoded, part)
        union_search(model, model.prepare(batch), batch["mask"], width=MiningConfig().beam_width)


def _mine(model: LookaheadEvaluator, encoded: EncodedSet, requests: np.ndarray) -> None:
    for part in _chunks(requests):
        mine_requests(model, encoded, part, MiningConfig())


def measure_workers(bed: Bed, requests: int, repeats: int, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Throughput of `degre mine`'s worker group with one Ray Train worker and with two, in turn on one Ray cluster.

    Counted from the moment the last worker is up (a barrier) to the last worker's end, so without the start of cluster and
    group. Both mine the same shards.
    """
    rates: dict[str, list[float]] = {"one": [], "two": []}
    mining = MiningConfig(requests=requests, shard_size=max(1, min(MiningConfig().shard_size, requests // 4)))
    with ray_cluster(RayConfig()):
        for repeat in range(repeats):
            for name, count in (("one", 1), ("two", 2)):
                say(f"{name} worker{'s' * (count > 1)}, repeat {repeat + 1}")
                place = bed.folder / f"group-{name}-{repeat}"
                config = {
                    "encoded": str(bed.folder),
                    "evaluator": str(bed.folder / "products"),
                    "mining": mining.model_dump(),
                    "folder": str(place),
                }
                run_group(
                    timed_mine, config, folder=place, scaling=ScalingConfig(num_workers=count), label="bench mining"
                )
                spans = [json.loads(file.read_text()) for file in place.glob("span-*.json")]
                rates[name].append(requests / (max(s["end"] for s in spans) - max(s["start"] for s in spans)))
    return {name: {"requests_per_s": median(of), "repeats": of} for name, of in rates.items()}


def timed_mine(config: dict[str, Any]) -> None:
    """`mine`, and when it began and ended on this worker (seconds since 1970)."""
    worker = current_worker()
    worker.wait()
    started = time.time()
    mine(config)
    write_json(Path(config["folder"]) / f"span-{worker.rank}.json", {"start": started, "end": time.time()})
