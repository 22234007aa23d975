"""`degre bench decode`: the greedy pass of one request in ONNX Runtime, against eager PyTorch and the floor."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from degre_prod.bundle import Bundle
from degre_prod.encoding.encoder import Encoded
from orchestration.bench.constrained import constrained_calls
from orchestration.bench.report import machine
from orchestration.bench.timing import interleaved_ms, matrix_rate, one_core
from orchestration.bench.world import catalogue, random_bundle, requests

REQUESTS = 200
REPEATS, CALLS = 7, 150


def bench_decode(candidates: int, length: int, bundle_folder: Path | None = None) -> dict[str, Any]:
    """Both decoders on the same encoded requests, one thread on one core; milliseconds are medians.

    With a bundle folder its own model is timed (on requests made up for its encoder's widths).
    """
    import torch

    from degre_prod.bundle import load_bundle
    from degre_prod.training.modules import load_generator

    torch.set_num_threads(1)
    with one_core(), tempfile.TemporaryDirectory() as folder:
        if bundle_folder is not None:
            bundle = load_bundle(bundle_folder)
            encoded = _random_arrays(bundle, candidates)
        else:
            world = catalogue(candidates=candidates, length=length, users=1000, items=5000)
            bundle = random_bundle(world, Path(folder) / "bundle", candidates)
            encoded = [
                bundle.encoder.encode(
                    r, world.columns("user", np.array([r.user_id])), world.columns("item", np.array(r.candidate_ids))
                )
                for r in requests(world, REQUESTS, candidates, seed=3)
            ]
        generator = load_generator(bundle.path).eval()
        batches = [_batch(e) for e in encoded]
        with torch.inference_mode():
            eager = [generator.decode(b, length)[0][0, : min(length, candidates)].tolist() for b in batches]
            ours = [bundle.decode(e, length).order.tolist() for e in encoded]
            times = interleaved_ms(
                {
                    "onnxruntime": lambda i: bundle.decode(encoded[i % REQUESTS], length),
                    "eager": lambda i: generator.decode(batches[i % REQUESTS], length),
                }
                | (constrained_calls(bundle, encoded, length) if bundle.follows_rules else {}),
                repeats=REPEATS,
                calls=CALLS,
            )
            from torch.utils.flop_counter import FlopCounterMode

            with FlopCounterMode(display=False) as counter:
                generator.decode(batches[0], length)
        model_macs = counter.get_total_flops() / 2
        graph_macs = _graph_multiply_adds(bundle, encoded[0])
        rate, library = matrix_rate()
    onnx_ms, eager_ms = median(times["onnxruntime"]), median(times["eager"])
    return {
        "bench": "decode",
        "candidates": candidates,
        "length": length,
        "onnxruntime_ms": round(onnx_ms, 4),
        "eager_ms": round(eager_ms, 4),
        **{f"{name}_ms": round(median(times[name]), 4) for name in ("rules", "exclude") if name in times},
        "speedup_vs_eager": round(eager_ms / onnx_ms, 2),
        "times_flop_floor": round(onnx_ms / (model_macs / rate * 1000), 2),
        "floor_ms": round(model_macs / rate * 1000, 4),
        "model_multiply_adds": int(model_macs),
        "times_graph_floor": round(onnx_ms / (graph_macs / rate * 1000), 2),
        "graph_multiply_adds": int(graph_macs),
        "product_gmacs_per_s": round(rate / 1e9, 1),
        "product_by": library,
        "lists_compared": len(encoded),
        "lists_equal": sum(a == b for a, b in zip(eager, ours, strict=True)),
        "repeats": {name: [round(ms, 4) for ms in values] for name, values in times.items()},
        "how": f"1 thread pinned to 1 core, {REPEATS} repeats of {CALLS} calls, median of medians",
        "machine": machine(),
    }


def _batch(encoded: Encoded) -> Any:
    import torch

    tensors = {name.rsplit("_", 1)[0]: torch.from_numpy(array)[None] for name, array in encoded.items()}
    return tensors | {"mask": torch.ones(1, len(encoded["prior_rank_C"]), dtype=torch.bool)}


def _random_arrays(bundle: Bundle, candidates: int) -> list[Encoded]:
    """Encoded requests of noise in the widths and cardinalities of the bundle's encoder."""
    rng = np.random.default_rng(0)
    layout = bundle.encoder.layout()
    out = []
    for _ in range(REQUESTS):
        encoded: Encoded = {"prior_rank_C": np.arange(candidates)}
        for group in ("item", "prior", "user", "context"):
            rows = (candidates,) if group in ("item", "prior") else ()
            axes = "CF" if rows else "F"
            encoded[f"{group}_num_{axes}"] = rng.normal(size=(*rows, layout.num[group])).astype(np.float32)
            encoded[f"{group}_cat_{axes}"] = rng.integers(0, layout.cat[group], (*rows, len(layout.cat[group])))
        out.append(encoded)
    return out


def _graph_multiply_adds(bundle: Bundle, encoded: Encoded) -> float:
    """Multiply-adds of the exported graph's matrix products, from the shapes the runtime reports for one run."""
    import onnxruntime

    from degre_prod.bundle.decoder import Decoder, graph_of
    from degre_prod.bundle.manifest import ONNX

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(bundle.path / ONNX), options, providers=["CPUExecutionProvider"])
        Decoder(graph_of(session)).decode(encoded, 1)
        events = json.loads(Path(session.end_profiling()).read_text())
    return sum(_multiply_adds(e["args"]) for e in events if e["name"].endswith("_kernel_time"))


def _multiply_adds(args: dict[str, Any]) -> float:
    operation = args["op_name"]
    given = [next(iter(shape.values())) for shape in args["input_type_shape"]]
    made = [next(iter(shape.values())) for shape in args["output_type_shape"]]
    if operation == "GRU":
        hidden = made[-1][-1]
        return float(3 * hidden * (given[0][-1] + hidden))
    if operation in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm"):
        # Transposed or not, |A| · |B| · |A·B| = (M·K)(K·N)(M·N) = (M·K·N)², here for each matrix of the batch. Weights
        # are not among the shapes, but K is the first input's last axis unless the product was transposed.
        a, out = given[0], made[0]
        if len(given) > 1 and len(given[1]) >= 2:
            batch = math.prod(out[:-2])
            b = given[1] if len(given[1]) > 2 else [*out[:-2], *given[1]]
            return float(batch * math.sqrt(math.prod(a) * math.prod(b) * math.prod(out) / batch**3))
        return float(math.prod(out) * a[-1])
    return 0.0
