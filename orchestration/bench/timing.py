"""Timing of alternatives side by side, so that a busy machine is unfair to all of them alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import numpy as np


def interleaved_ms(
    alternatives: Mapping[str, Callable[[int], object]], *, repeats: int, calls: int, warmup: int = 20
) -> dict[str, list[float]]:
    """Median milliseconds a call of each alternative, one value a repeat; each is called with a running index.

    In every repeat each alternative makes `calls` calls in a row, in turn, so that caches are as warm as in service.
    """
    out: dict[str, list[float]] = {name: [] for name in alternatives}
    index = 0
    for _ in range(repeats):
        for name, call in alternatives.items():
            for i in range(warmup):
                call(index + i)
            times = []
            for i in range(calls):
                started = time.perf_counter()
                call(index + warmup + i)
                times.append(time.perf_counter() - started)
            out[name].append(median(times) * 1000)
        index += warmup + calls
    return out


def matrix_rate() -> tuple[float, str]:
    """Multiply-adds a second of a 1024 × 1024 float32 product on one thread, and the library that reached it.

    The best of NumPy, PyTorch and ONNX Runtime, so that no slow library makes the floor look high.
    """
    import onnxruntime
    import torch
    from onnx import TensorProto, helper

    n = 1024
    rng = np.random.default_rng(0)
    a, b = (rng.random((n, n), np.float32) for _ in range(2))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [n, n]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    products: dict[str, Callable[[], object]] = {
        "numpy": lambda: a @ b,
        "torch": lambda: ta @ tb,
        "onnxruntime": lambda: session.run(None, {"a": a, "b": b}),
    }
    best = {name: min(_seconds(product) for _ in range(50)) for name, product in products.items()}
    fastest = min(best, key=best.__getitem__)
    return n**3 / best[fastest], fastest


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core inside the block, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
