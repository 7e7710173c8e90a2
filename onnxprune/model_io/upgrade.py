"""Inline local functions and lift old opsets, with the C++ tools of the onnx package.

Both tools copy the whole model through serialised bytes, so large weights are set aside first and put back after:
that keeps memory small and works beyond the 2 GB that a protobuf can hold. onnx-ir's own InlinePass is not used: it
gives a main-graph value the name of a value in a subgraph (onnx-ir 1.1), which ONNX Runtime refuses.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import onnx
import onnx.inliner
import onnx.version_converter

from onnxprune.errors import ModelError
from onnxprune.model_io import protobuf
from onnxprune.model_io.opset_seven import lift_to_seven

_BEFORE_BROADCASTING = 6
_MOST_NODES = 1_000_000
_LARGE = 4096  # elements; the converter reads only small constants: shapes, axes, scales
_FIRST_STAND_IN = 100_003  # extents given to symbolic dimensions while converting; no real extent looks like these


def inline_functions(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The same model without local functions. Bodies written for another opset are converted to the model's.

    Raises:
        ModelError: The functions call each other in a circle, would become more nodes than any model has, or a body
            cannot be converted.
    """
    if not proto.functions:
        return proto
    _refuse_bombs(proto, name)
    weights = _LargeWeights(proto)
    try:
        proto = onnx.inliner.inline_local_functions(proto, convert_version=_mixed_opsets(proto))
    except Exception as error:
        raise ModelError(f"the local functions of '{name}' cannot be inlined: {_sentence(error)}.") from error
    weights.restore(proto)
    if proto.functions:
        left = ", ".join(f"{function.domain}::{function.name}" for function in proto.functions)
        raise ModelError(
            f"the local functions of '{name}' cannot be inlined: {left} are left (do they call themselves?)."
        )
    return proto


def upgrade_opset(proto: onnx.ModelProto, oldest: int, name: str) -> onnx.ModelProto:
    """The same model at opset `oldest`, when it is older than that; else the model itself.

    Raises:
        ModelError: It cannot be lifted; the sentence says why.
    """
    if proto.ir_version < 3:  # before IR version 3 a model named no operator set: it was 1
        proto.ir_version = 3
        if not proto.opset_import:
            proto.opset_import.add(domain="", version=1)
    opset = protobuf.default_opset(proto)
    if opset is None or opset >= oldest:
        return proto
    weights = _LargeWeights(proto)
    if opset < _BEFORE_BROADCASTING:
        proto = _converted(proto, _BEFORE_BROADCASTING, opset, name)
    if opset <= _BEFORE_BROADCASTING < oldest:
        lift_to_seven(proto, name)
    if oldest > _BEFORE_BROADCASTING + 1:
        proto = _converted(proto, oldest, opset, name)
    weights.restore(proto)
    return proto


def _converted(proto: onnx.ModelProto, to: int, opset: int, name: str) -> onnx.ModelProto:
    """The model as onnx's version converter writes it for operator set `to`; `opset` is what the file had."""
    dimensions = _Dimensions(proto)
    try:
        proto = onnx.version_converter.convert_version(proto, to)
    except Exception as error:
        raise ModelError(
            f"'{name}' uses opset {opset}, and onnx's version converter cannot lift it to {to}: {_sentence(error)}."
        ) from error
    dimensions.restore(proto)
    return proto


def _refuse_bombs(proto: onnx.ModelProto, name: str) -> None:
    """Refuse functions that call functions that call functions: thirty of two calls each become a billion nodes.

    Raises:
        ModelError: They would. (A circle is left to the inliner, which refuses it.)
    """
    calls = {
        (f.domain, f.name): Counter((node.domain, node.op_type) for node in protobuf.nodes_below(f.node))
        for f in proto.functions
    }
    sizes = dict.fromkeys(calls, 0)
    for _ in range(len(calls)):  # after as many rounds as there are functions every chain of calls is counted
        before = dict(sizes)
        for function, called in calls.items():
            sizes[function] = sum(count * max(1, before.get(other, 1)) for other, count in called.items())
            if sizes[function] > _MOST_NODES:
                raise ModelError(
                    f"the local functions of '{name}' cannot be inlined: '{function[1]}' would become more than "
                    f"{_MOST_NODES:,} nodes (do they call themselves?)."
                )
        if sizes == before:
            break


def _mixed_opsets(proto: onnx.ModelProto) -> bool:
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    return any(
        versions.get(entry.domain, entry.version) != entry.version
        for function in proto.functions
        for entry in function.opset_import
    )


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")


class _LargeWeights:
    """The large initializers of the main graph, taken out of a model and replaced by inputs until put back."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph_inputs = {value.name for value in proto.graph.input}
        self.order = [tensor.name for tensor in proto.graph.initializer]
        self.large = [_copied(t) for t in proto.graph.initializer if _elements(t) > _LARGE]
        small = [t for t in proto.graph.initializer if _elements(t) <= _LARGE]
        self.added = {t.name for t in self.large if t.name not in graph_inputs}
        for tensor in self.large:
            if tensor.name not in self.added:
                continue
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            proto.graph.input.append(info)
        _replace(proto.graph.initializer, small)

    def restore(self, proto: onnx.ModelProto) -> None:
        """Put the weights back into `proto`, in the order they had; the tools' own initializers come last."""
        inputs = [value for value in proto.graph.input if value.name not in self.added]
        _replace(proto.graph.input, inputs)
        by_name = {t.name: t for t in (*proto.graph.initializer, *self.large)}
        ordered = [by_name.pop(name) for name in self.order if name in by_name]
        _replace(proto.graph.initializer, [*ordered, *by_name.values()])


class _Dimensions:
    """Symbolic dimensions of inputs and outputs, replaced by numbers: the converter gives up on symbols."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.original = {v.name: _copied(v) for v in (*proto.graph.input, *proto.graph.output)}
        symbols: dict[str, int] = {}
        for value in proto.graph.input:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if not dim.HasField("dim_value"):
                    key = dim.dim_param or f"{value.name}:{axis}"
                    dim.dim_value = symbols.setdefault(key, _FIRST_STAND_IN + len(symbols))
        for value in proto.graph.output:
            value.type.tensor_type.ClearField("shape")
        del proto.graph.value_info[:]

    def restore(self, proto: onnx.ModelProto) -> None:
        """Give inputs and outputs their declared types back; inner shapes hold the stand-ins and are dropped."""
        for value in (*proto.graph.input, *proto.graph.output):
            if value.name in self.original:
                value.CopyFrom(self.original[value.name])
        del proto.graph.value_info[:]


def _elements(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def _replace(field: Any, messages: list[Any]) -> None:
    """Set a repeated protobuf field to these messages, which may have been members of it."""
    copies = [_copied(message) for message in messages]
    del field[:]
    field.extend(copies)


def _copied(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
