"""A few lines of convenience over onnx.helper: nodes get names and outputs by themselves, arrays become initialisers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
MICROSOFT = "com.microsoft"  # operators of ONNX Runtime's own, such as fused attention
_KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
_KINDS[np.dtype(np.bool_)] = TensorProto.BOOL

Value = str  # the name of a tensor in the graph


class GraphBuilder:
    """Collects nodes in the order they are called; equal constants are stored once."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> Value:
        """Declare an input; strings in `shape` are dynamic axes."""
        self._inputs.append(helper.make_tensor_value_info(name, _KINDS[np.dtype(dtype)], list(shape)))
        return name

    def const(self, array: Any, dtype: Any = np.float32) -> Value:
        """An initialiser."""
        values = np.ascontiguousarray(np.asarray(array, dtype)).reshape(np.shape(array))
        key = (str(values.dtype), values.shape, values.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(values, f"c{len(self._constants)}")
        return self._constants[key].name

    def ints(self, *values: int) -> Value:
        """An int64 initialiser of one axis: shapes, axes, indices."""
        return self.const(np.array(values, np.int64), np.int64)

    def node(self, op: str, *inputs: Value, domain: str = "", **attributes: Any) -> Value:
        """Append a node with one output and return it; an empty input name leaves an optional input out."""
        return self.nodes(op, *inputs, outputs=1, domain=domain, **attributes)[0]

    def nodes(self, op: str, *inputs: Value, outputs: int, domain: str = "", **attributes: Any) -> list[Value]:
        """Append a node with several outputs."""
        index = len(self._nodes)
        names = [f"n{index}_{op}_{i}" if outputs > 1 else f"n{index}_{op}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), names, name=f"n{index}", domain=domain, **attributes))
        return names

    def linear(self, x: Value, weight_IO: np.ndarray, bias_O: np.ndarray | None = None) -> Value:
        """x_XI → x_XO, two axes."""
        extra = [] if bias_O is None else [self.const(bias_O)]
        return self.node("Gemm", x, self.const(weight_IO), *extra)

    def reshape(self, x: Value, *shape: int) -> Value:
        """Reshape; -1 once."""
        return self.node("Reshape", x, self.ints(*shape))

    def save(self, file: str, outputs: Mapping[str, tuple[Value, Any, Sequence[int | str]]]) -> None:
        """Write the model: `outputs` maps a public name to (tensor, dtype, shape). Raises onnx's checker errors."""
        named = [helper.make_node("Identity", [value], [name]) for name, (value, _, _) in outputs.items()]
        infos = [helper.make_tensor_value_info(n, _KINDS[np.dtype(d)], list(s)) for n, (_, d, s) in outputs.items()]
        graph = helper.make_graph(
            [*self._nodes, *named], "greedy", self._inputs, infos, initializer=list(self._constants.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="degre")
        model.ir_version = 8  # of opset 17: older runtimes load it too
        onnx.checker.check_model(model)
        onnx.save(model, file)
