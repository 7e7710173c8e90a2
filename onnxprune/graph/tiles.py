"""Layers in tiles: the outputs of a layer are divided into a few tiles, and each tile reads some of the inputs.

A mask says it all: outputs whose weights stay at the same inputs are one tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.layers import MatrixAxes, matrix_axes
from onnxprune.graph.operators import operator_of

Indices = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tile:
    """Some outputs of a layer and the inputs that they read, both in rising order."""

    outputs: Indices
    inputs: Indices


def tiles_of(mask: Bools, axes: MatrixAxes) -> list[Tile]:
    """Return the tiles of a mask in the order of their first outputs; an input is read if a place of a kernel reads it.

    Args:
        mask: Which weights stay, in the shape of the weight.
        axes: The axes of the weight.
    """
    moved = np.moveaxis(mask, (axes.output, axes.reduction), (0, 1))
    reads: Bools = np.asarray(moved.reshape(*moved.shape[:2], -1).any(axis=2))
    _, first, tile_of = np.unique(reads, axis=0, return_index=True, return_inverse=True)
    tile_of = tile_of.reshape(-1)
    order = np.argsort(first, kind="stable")
    return [Tile(np.flatnonzero(tile_of == number), np.flatnonzero(reads[first[number]])) for number in order]


def mask_of(tiles: Sequence[Tile], shape: Sequence[int], axes: MatrixAxes) -> Bools:
    """Return the mask that tiles make, in the shape of the weight.

    Raises:
        IndexError: A tile has outputs or inputs that the weight does not have.
    """
    reads = np.zeros((shape[axes.output], shape[axes.reduction]), bool)
    for tile in tiles:
        reads[np.ix_(tile.outputs, tile.inputs)] = True
    rest = [extent for axis, extent in enumerate(shape) if axis not in (axes.output, axes.reduction)]
    wide = np.broadcast_to(reads.reshape(*reads.shape, *[1] * len(rest)), (*reads.shape, *rest))
    return np.ascontiguousarray(np.moveaxis(wide, (0, 1), (axes.output, axes.reduction)))


def indivisible(value: ir.Value, node: ir.Node, shape: Sequence[int] | None = None) -> str:
    """Return why a layer cannot be divided into tiles, empty where it can.

    Args:
        value: The tensor that holds its weights.
        node: The operator that it is the weight of.
        shape: Of the value, where it does not know that itself.
    """
    if not operator_of(node).divisible:
        return f"{node.op_type} is not divided into tiles"
    axes = matrix_axes(value, node, shape)
    if axes is None:
        return "its weights are no matrix of outputs by inputs"
    if axes.groups > 1:
        return "its groups read inputs of their own already"
    return ""
