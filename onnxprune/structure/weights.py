"""The prunable weights of a model, with what a criterion may want to know of each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.structure.masking import constant_content, zero_of
from onnxprune.structure.structure import Structure


@dataclass(frozen=True, eq=False)
class Weight:
    """One prunable tensor.

    Attributes:
        name: Its initializer's name.
        value: Where it stands in the graph.
        node: The Conv, Gemm, MatMul, ... that it is the weight of.
        structure: The analysis it belongs to.
    """

    name: str
    value: ir.Value
    node: ir.Node
    structure: Structure

    @property
    def is_packed(self) -> bool:
        """Whether its numbers lie in blocks of a few bits, of which only whole blocks go."""
        return self.value in self.structure.packed

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its numbers."""
        return self.structure.weight_shape(self.value)

    @property
    def size(self) -> int:
        """The number of parameters."""
        return math.prod(self.shape)

    def numbers(self) -> npt.NDArray[np.float32]:
        """Return the weights as float32; quantised ones as their distance from the zero point."""
        array = constant_content(self.value)
        if self.value in self.structure.packed:
            return self.structure.packed[self.value].numbers(array)
        fill = self.structure.fills.get(self.value)
        if fill is not None:
            array = array.astype(np.float32) - zero_of(fill, array).astype(np.float32)
        return array.astype(np.float32, copy=False)


def prunable_weights(structure: Structure) -> list[Weight]:
    """Return the weights of every contraction and recurrent cell, in the order of the model."""
    return [
        Weight(str(value.name), value, node, structure)
        for value, node in structure.weights.items()
        if value in structure.axes and (_is_float(structure, value) or value in structure.fills)
    ]


def total_size(weights: Iterable[Weight]) -> int:
    """Return the number of parameters of several weights."""
    return sum(w.size for w in weights)


def _is_float(structure: Structure, value: ir.Value) -> bool:
    return ir.DataType(structure.facts.dtype(value)).is_floating_point()
