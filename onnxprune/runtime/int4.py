"""int4 by ONNX Runtime's own quantiser: each product with a constant matrix becomes MatMulNBits.

Its weights have 4 bits each. The inputs of an output are divided into blocks of `BLOCK`, with a scale and a zero point
for each block, which is a whole number: a pruned weight is exactly zero afterwards. Activations stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

from onnxprune.graph.edit import Editor
from onnxprune.graph.operators import operator_of
from onnxprune.graph.packed import ENDING, Packed, layout_of
from onnxprune.model_io.bodies import nodes_of
from onnxprune.runtime.stream.store import Store

BLOCK = 32
"""Inputs that share a scale; what the builder of onnxruntime-genai takes, too."""

_ENDINGS = (ENDING, "_scales", "_zero_points")  # what the quantiser calls them
_DOMAIN = "com.microsoft"
_IN_MEMORY = 64 << 20  # bytes of packed weights

Array = npt.NDArray[Any]


def blockwise(model: ir.Model) -> ir.Model:
    """Return a copy of a model whose products with constant matrices hold 4 bits a weight, each the nearest level.

    One weight is read at a time, and what becomes of large ones lies on disk: of a model whose weights lie there, too,
    no more is held than the largest takes.
    """
    copy = model.clone()
    quantiser = DefaultWeightOnlyQuantizer(DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False))
    edit, store, known = Editor(copy), Store(_IN_MEMORY), dict[ir.Value, list[ir.Value]]()
    for node in list(nodes_of(copy.graph)):
        weight = _matrix_of(node)
        if weight is None:
            continue
        if weight not in known:
            known[weight] = [
                _constant(edit, weight, ending, store.held(array))
                for ending, array in zip(_ENDINGS, _in_blocks(quantiser, weight), strict=True)
            ]
        _multiply_packed(edit, node, weight, known[weight])
    for weight in known:
        graph = weight.graph
        if not weight.uses() and not weight.is_graph_output() and isinstance(graph, ir.Graph):
            if weight.is_graph_input():  # as old models list their constants
                graph.inputs.remove(weight)
            graph.initializers.pop(str(weight.name))
    if known:
        copy.opset_imports.setdefault(_DOMAIN, 1)
    return copy


def packed_matrices(model: ir.Model) -> Iterator[tuple[str, ir.Value, Packed]]:
    """The matrices that were quantised, each once: the name in the float model, the constant, how it is packed."""
    seen: set[ir.Value] = set()
    for node in nodes_of(model.graph):
        value = node.inputs[1] if operator_of(node).packs(1) else None
        layout = None if value is None else layout_of(node)
        if value is not None and value not in seen and isinstance(layout, Packed):
            seen.add(value)
            yield str(value.name).removesuffix(ENDING), value, layout


def _matrix_of(node: ir.Node) -> ir.Value | None:
    """The matrix in floating point that a product multiplies rows with; None where there is none."""
    if (node.op_type, node.domain) != ("MatMul", ""):
        return None
    data, weight = node.inputs
    tensor = None if weight is None else weight.const_value
    if data is None or weight is None or tensor is None or not weight.is_initializer():
        return None
    shape, rank = tensor.shape.numpy(), None if data.shape is None else len(data.shape)
    flat = len(shape) == 2 or (len(shape) > 2 and set(shape[:-2]) == {1} and rank is not None and rank >= len(shape))
    return weight if flat and tensor.dtype.is_floating_point() else None


def _in_blocks(quantiser: Any, weight: ir.Value) -> tuple[Array, Array, Array]:
    """Levels, scales and zero points of a matrix, by the quantiser's kernel."""
    assert weight.const_value is not None
    array = weight.const_value.numpy()
    array, narrow = array.reshape(array.shape[-2:]), weight.const_value.dtype == ir.DataType.BFLOAT16
    levels, scales, points = quantiser.qbits_block_quant(array.astype(np.float32) if narrow else array)
    return levels, scales.astype(array.dtype) if narrow else scales, points


def _constant(edit: Editor, weight: ir.Value, ending: str, array: Array) -> ir.Value:
    """A constant beside a weight, under its name with an ending; another name where that is taken."""
    tensor, graph = ir.Tensor(array, name=edit.fresh(f"{weight.name}{ending}")), weight.graph
    assert isinstance(graph, ir.Graph)
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _multiply_packed(edit: Editor, node: ir.Node, weight: ir.Value, packed: Sequence[ir.Value]) -> None:
    """Let MatMulNBits take the place of a product."""
    assert weight.const_value is not None and isinstance(node.graph, ir.Graph)
    rows, columns = weight.const_value.shape.numpy()[-2:]
    settings = {"K": rows, "N": columns, "bits": 4, "block_size": BLOCK}
    new = ir.node("MatMulNBits", [node.inputs[0], *packed], attributes=settings, domain=_DOMAIN)
    new.name = edit.fresh(f"{node.name}{ENDING}") if node.name else ""
    new.outputs[0].name = edit.fresh(f"{node.outputs[0].name}{ENDING}")
    node.graph.insert_before(node, new)
    edit.take_place(node.outputs[0], new.outputs[0])
    node.graph.remove(node, safe=True)
