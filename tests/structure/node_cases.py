"""ONNX's own test cases of single operators, turned into models on constants."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

from .twins import Array, node_model


@dataclass(eq=False)
class Case:
    """One backend test case.

    Attributes:
        name: Its name in ONNX.
        node: Its only node.
        constants: The content of all its inputs.
        opsets: The operator sets that it imports.
        shapes: The shape of each output, where ONNX gives one.
    """

    name: str
    node: onnx.NodeProto
    constants: Mapping[str, Array | onnx.TensorProto]
    opsets: Mapping[str, int]
    shapes: tuple[tuple[int, ...], ...] = ()

    @functools.cached_property
    def model(self) -> onnx.ModelProto:
        """The case on constants, with outputs that can lose indices."""
        return node_model(self.node, self.constants, self.opsets)


@functools.cache
def cases() -> dict[str, list[Case]]:
    """Return the cases of every operator whose inputs are tensors of numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases("")
    out: dict[str, list[Case]] = {}
    for case in found:
        graph = case.model.graph
        if len(graph.node) != 1 or case.name.endswith("_expanded") or graph.node[0].domain not in ("", "ai.onnx"):
            continue
        constants = _constants(graph, case.data_sets[0][0])
        if constants is not None and _plain(graph):
            opsets = {o.domain: o.version for o in case.model.opset_import}
            shapes = tuple(_shape(o) for o in case.data_sets[0][1])
            out.setdefault(graph.node[0].op_type, []).append(Case(case.name, graph.node[0], constants, opsets, shapes))
    return out


def _constants(graph: onnx.GraphProto, inputs: list[object]) -> dict[str, Array | onnx.TensorProto] | None:
    constants: dict[str, Array | onnx.TensorProto] = {}
    for value, content in zip(graph.input, inputs, strict=False):
        if not value.type.HasField("tensor_type"):
            return None
        if isinstance(content, np.ndarray | np.generic) and np.asarray(content).dtype.kind in "biufcV":
            array = np.asarray(content)
            elem = value.type.tensor_type.elem_type
            constants[value.name] = (
                onnx.numpy_helper.from_array(array) if _same_type(array, elem) else _typed(array, elem)
            )
        elif isinstance(content, onnx.TensorProto) and content.data_type != onnx.TensorProto.STRING:
            constants[value.name] = content
        else:
            return None
    return constants


def _shape(content: object) -> tuple[int, ...]:
    return tuple(content.dims) if isinstance(content, onnx.TensorProto) else np.asarray(content).shape


def _same_type(array: Array, elem: int) -> bool:
    return array.dtype == onnx.helper.tensor_dtype_to_np_dtype(elem)


def _typed(array: Array, elem: int) -> onnx.TensorProto:
    return onnx.helper.make_tensor("", elem, array.shape, array.astype(np.float32).flatten().tolist())


def _plain(graph: onnx.GraphProto) -> bool:
    return all(
        o.type.HasField("tensor_type") and o.type.tensor_type.elem_type != onnx.TensorProto.STRING for o in graph.output
    )
