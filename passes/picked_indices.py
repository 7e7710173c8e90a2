"""Which indices a run of Reshape, Transpose and Gather picks of one axis, if it does nothing else.

A tensor that was only reshaped, transposed and picked from is known without its numbers: along each axis, its elements
lie in steps of so many places of the source, `extent` of them for each step. [2, 6, 4] has the steps (2, 24), (6, 4),
(4, 1); as [2, 2, 3, 4] and with the middle axes swapped it has (2, 24), (3, 4), (2, 12), (4, 1). Where a Reshape cuts
through a step, or a Gather takes several indices, a tensor of numbered elements is moved instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.shapes import Facts, Shape

_LABEL_LIMIT = 1 << 22  # elements of the label tensor on which a run of moves is tried

_Step = tuple[int, int]  # how many elements lie along it, and how many places of the source they are apart
_Indices = npt.NDArray[np.int64]


def picked_indices(
    extents: Sequence[int], run: Sequence[ir.Node], facts: Facts, shapes: Mapping[ir.Value, Shape]
) -> tuple[int, _Indices] | None:
    """Return the axis and the indices with which one Gather does what a run of moves does; None where none does.

    Args:
        extents: The shape of what the run moves.
        run: Nodes that each move the output of the one before.
        facts: What is known of the model's values.
        shapes: The shapes of the run's outputs, at the same setting as `extents`.
    """
    if not math.prod(extents):
        return None
    moved = _moved(extents, run, facts, shapes)
    if moved is not None:
        return picked_axis(extents, *moved)
    if math.prod(extents) > _LABEL_LIMIT:
        return None
    labels = np.arange(math.prod(extents), dtype=np.int64).reshape(extents)
    after = _moved_labels(labels, run, facts, shapes)
    return None if after is None else picked_labels(labels, after)


# -- by steps -------------------------------------------------------------------------------------------------------


def _moved(
    extents: Sequence[int], run: Sequence[ir.Node], facts: Facts, shapes: Mapping[ir.Value, Shape]
) -> tuple[list[list[_Step]], int] | None:
    """Return the steps along each axis behind a run, and the place of its first element; None where steps are cut."""
    axes, first = contiguous(extents), 0
    for node in run:
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm")
            axes = [axes[i] for i in order] if order is not None else axes[::-1]
        elif node.op_type == "Gather":
            index = facts.data(node.inputs[1])
            if index is None or index.ndim:
                return None
            axes, first = without(axes, node.attributes.get_int("axis", 0), int(index), first)
        else:
            shape = shapes.get(node.outputs[0])
            if shape is None or None in shape or (parts := divided(axes, [int(n or 0) for n in shape])) is None:
                return None
            axes = parts
    return axes, first


def contiguous(extents: Sequence[int]) -> list[list[_Step]]:
    """The steps of a tensor that lies as it is written."""
    return [[(n, math.prod(extents[i + 1 :]))] if n > 1 else [] for i, n in enumerate(extents)]


def without(axes: Sequence[list[_Step]], axis: int, index: int, first: int) -> tuple[list[list[_Step]], int]:
    """The steps along the other axes, and the place of the first element, where one index of an axis is picked."""
    left = list(axes)
    steps = left.pop(axis)
    index += math.prod(n for n, _ in steps) if index < 0 else 0
    for n, apart in reversed(steps):
        index, at = divmod(index, n)
        first += at * apart
    return left, first


def divided(axes: Sequence[Sequence[_Step]], shape: Sequence[int]) -> list[list[_Step]] | None:
    """The steps of the same elements in another shape; None where an axis would end inside of a step's elements."""
    steps = _joined(step for axis in axes for step in axis)[::-1]
    out: list[list[_Step]] = []
    for extent in shape:
        mine: list[_Step] = []
        while extent > 1:
            n, apart = steps.pop() if steps else (1, 0)
            if n <= extent and n > 1 and extent % n == 0:
                mine.append((n, apart))
                extent //= n
            elif n > extent and n % extent == 0:
                mine.append((extent, apart * (n // extent)))
                steps.append((n // extent, apart))
                extent = 1
            else:
                return None
        out.append(mine)
    return None if steps else out


def _joined(steps: Iterable[_Step]) -> list[_Step]:
    """Steps that continue each other as one."""
    out: list[_Step] = []
    for n, apart in steps:
        if out and out[-1][1] == n * apart:
            out[-1] = (out[-1][0] * n, apart)
        else:
            out.append((n, apart))
    return out


def picked_axis(extents: Sequence[int], axes: Sequence[Sequence[_Step]], first: int) -> tuple[int, _Indices] | None:
    """The axis whose indices were picked, and these, where all others are as they were."""
    joined, before = [_joined(axis) for axis in axes], contiguous(extents)
    for axis, steps in enumerate(joined):
        if joined[:axis] + joined[axis + 1 :] != before[:axis] + before[axis + 1 :]:
            continue
        apart = math.prod(extents[axis + 1 :])
        places = np.full(1, first, np.int64)
        for n, step in steps:
            places = np.add.outer(places, np.arange(n, dtype=np.int64) * step).reshape(-1)
        indices, rest = np.divmod(places, apart)
        if not rest.any() and int(indices.max()) < extents[axis]:
            return axis, indices
    return None


# -- by labels ------------------------------------------------------------------------------------------------------


def _moved_labels(
    labels: _Indices, run: Sequence[ir.Node], facts: Facts, shapes: Mapping[ir.Value, Shape]
) -> _Indices | None:
    for node in run:
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm")
            labels = labels.transpose(order if order is not None else None)
        elif node.op_type == "Gather":
            index = facts.data(node.inputs[1])
            if index is None:
                return None
            labels = np.take(labels, index.astype(np.int64), axis=node.attributes.get_int("axis", 0))
        else:
            shape = shapes.get(node.outputs[0])
            if shape is None or None in shape:
                return None
            labels = labels.reshape([int(n or 0) for n in shape])
    return labels


def picked_labels(labels: _Indices, moved: _Indices) -> tuple[int, _Indices] | None:
    """Return the axis and indices with which ``take`` gives the moved labels."""
    if moved.size == 0:
        return None
    for axis in range(labels.ndim):
        same = [a == b for i, (a, b) in enumerate(zip(labels.shape, moved.shape, strict=True)) if i != axis]
        if not all(same):
            continue
        line = moved[tuple(slice(None) if i == axis else 0 for i in range(moved.ndim))]
        indices = (line // math.prod(labels.shape[axis + 1 :])) % labels.shape[axis]
        if np.array_equal(np.take(labels, indices, axis=axis), moved):
            return axis, indices
    return None
