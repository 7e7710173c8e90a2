"""Whether a Reshape has a place for each number, which shape inference does not check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Shapes = Mapping[ir.Value, tuple["int | None", ...]]
Data = Mapping[ir.Value, npt.NDArray[np.generic]]


def shape_and_target(node: ir.Node, shapes: Shapes, data: Data) -> tuple[list[int], list[int]]:
    """Return the shape that a Reshape reads and its target, zeros as they stand; both empty where one is not known."""
    if node.op_type != "Reshape" or node.domain or node.inputs[0] is None or node.inputs[1] is None:
        return [], []
    shape, target = shapes.get(node.inputs[0], (None,)), data.get(node.inputs[1])
    extents = [extent for extent in shape if extent is not None]
    if target is None or len(extents) < len(shape) or node.attributes.get_int("allowzero", False):
        return [], []
    entries = [int(entry) for entry in target.reshape(-1)]
    return ([], []) if 0 in entries[len(extents) :] else (extents, entries)


def has_places(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Return whether the numbers of a shape fill a target."""
    filled = [shape[axis] if entry == 0 else abs(entry) for axis, entry in enumerate(target)]
    numbers, places = math.prod(shape), math.prod(filled)
    return numbers == places if -1 not in target or not places else numbers % places == 0


def fits(node: ir.Node, shapes: Shapes, data: Data) -> bool:
    """Return whether a node, if it is a Reshape, has a place for each number; True where that is not known."""
    shape, target = shape_and_target(node, shapes, data)
    return not target or has_places(shape, target)
