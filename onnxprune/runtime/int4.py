"""int4 by ONNX Runtime's own quantiser: each product with a constant matrix becomes MatMulNBits.

Its weights have 4 bits each. The inputs of an output are divided into blocks of `BLOCK`, with a scale and a zero point
for each block, which is a whole number: a pruned weight is exactly zero afterwards. Activations stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from onnxprune.graph.operators import operator_of
from onnxprune.graph.packed import ENDING, Packed, layout_of
from onnxprune.model_io.bodies import nodes_of
from onnxprune.runtime import Feeds, int8

BLOCK = 32
"""Inputs that share a scale; what the builder of onnxruntime-genai takes, too."""


def blockwise(source: Path, batches: Sequence[Feeds]) -> int8.Quantised:
    """Quantise the weights of a model file, each to the nearest level."""
    quantiser = MatMulNBitsQuantizer(onnx.load(source), block_size=BLOCK, is_symmetric=False)
    quantiser.process()
    model = quantiser.model.model
    _each_constant_once(model.graph)
    return int8.Quantised(onnx.load(source), model, {})


def packed_matrices(model: ir.Model) -> Iterator[tuple[str, ir.Value, Packed]]:
    """The matrices that were quantised, each once: the name in the float model, the constant, how it is packed."""
    seen: set[ir.Value] = set()
    for node in nodes_of(model.graph):
        value = node.inputs[1] if operator_of(node).packs(1) else None
        layout = None if value is None else layout_of(node)
        if value is not None and value not in seen and isinstance(layout, Packed):
            seen.add(value)
            yield str(value.name).removesuffix(ENDING), value, layout


def _each_constant_once(graph: onnx.GraphProto) -> None:
    """Remove what the quantiser stores once more for each further reader of a weight."""
    once = {tensor.name: tensor for tensor in graph.initializer}
    if len(once) < len(graph.initializer):
        kept = list(once.values())
        del graph.initializer[:]
        graph.initializer.extend(kept)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _each_constant_once(attribute.g)
