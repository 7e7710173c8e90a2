"""What ShrinkBench reports, counted on an ONNX model: the compression ratio and the theoretical speed-up.

    compression ratio      all parameters / non-zero parameters          weights, biases, BatchNorm's scales and shifts
    theoretical speed-up   multiply-adds / those with a non-zero weight  from the graph and its actual output shapes

Source: Blalock et al. 2020, What is the State of Neural Network Pruning?, section 6. Running means and variances are no
parameters, as in PyTorch. Every weight of a convolution, Gemm, MatMul or recurrent cell is used equally often, so the
non-zero share of a node's weights is that of its multiply-adds: for any padding, stride, groups and dilation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.size import macs_of
from onnxprune.pipeline.prepare import prepare
from onnxprune.runtime import concrete_shapes
from onnxprune.structure.masking import constant_content
from onnxprune.training.layers import find_layers

ROLES = ("weight", "bias", "scale")


@dataclass(frozen=True)
class Counts:
    """Parameters and multiply-adds of a model, all of them and the non-zero ones."""

    parameters: int
    nonzero: int
    macs: int
    nonzero_macs: int


def count(model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]]) -> Counts:
    """Count a model, for one run on `feeds` (arrays by input name; a batch of one gives the usual figures)."""
    arrays = parameters(model).values()
    macs = count_macs(model, feeds)
    return Counts(sum(a.size for a in arrays), sum(int(np.count_nonzero(a)) for a in arrays), *macs)


def parameters(model: ir.Model) -> dict[str, npt.NDArray[Any]]:
    """The arrays that training changes by gradients, by name."""
    roles = find_layers(model)
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and name in roles and roles[name].role in ROLES
    }


def count_macs(model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[int, int]:
    """Multiply-adds of one run, all of them and those with a non-zero weight.

    Raises:
        ValueError: The shapes that a node's count needs are not known.
    """
    structure = prepare(model.clone())
    weights: dict[ir.Node, list[npt.NDArray[Any]]] = defaultdict(list)
    for value, node in structure.weights.items():
        weights[node].append(constant_content(value))
    shapes = concrete_shapes(structure.model, feeds)
    total = left = 0
    for node in structure.model.graph:
        macs = macs_of(node, shapes)
        if macs is None:
            raise ValueError(f"the multiply-adds of the node {node.name!r} cannot be counted: a shape is not known")
        size = sum(array.size for array in weights[node])
        nonzero = sum(int(np.count_nonzero(array)) for array in weights[node])
        total += macs
        left += macs * nonzero // size if size else macs
    return total, left
