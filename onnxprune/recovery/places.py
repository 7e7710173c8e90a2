"""Where two networks are compared: a value that both have, and the channels of it that are left in the pruned one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.linear import Linear, linear_layers
from onnxprune.runtime.stream.cursor import Program
from onnxprune.structure.rewrite import Kept

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Place:
    """A value that is compared.

    Attributes:
        name: Of the value, in both models.
        axis: The axis of channels that went.
        rows: The channels of the dense value that are left; None for all.
        variance: Of the dense value at what is left, over samples and positions, the mean over channels.
    """

    name: str
    axis: int
    rows: Index | None
    variance: float

    def left(self, value: Array) -> Array:
        """What is left of the dense value."""
        return value if self.rows is None else np.take(value, self.rows, axis=self.axis)


def rows_left(layer: Linear, kept: Kept) -> Index | None:
    """The outputs of a layer that are left; None for all."""
    return kept.get(layer.name, {}).get(layer.output_axis)


def experts_left(layer: Linear, kept: Kept) -> Index | None:
    """The experts of a stack of matrices that are left; None for all, or where there are none."""
    return None if layer.stack is None else kept.get(layer.name, {}).get(layer.stack.axis)


def compared_at(
    dense: ir.Model, pruned: ir.Model, kept: Kept, names: Sequence[str], feed: Mapping[str, Array]
) -> list[Place]:
    """Return the float values among these at which the models can be compared.

    A value whose channels cannot be told is left out.

    Args:
        dense, pruned: The models.
        kept: The kept indices of cut constants.
        names: Of values in both.
        feed: A batch, from which shapes and variances are seen.
    """
    theirs = Program(dense, list(dense.graph), names, feed)(feed)
    ours = Program(pruned, list(pruned.graph), names, feed)(feed)
    values = {str(out.name): out for node in pruned.graph for out in node.outputs}
    rows = {x.node: rows_left(x, kept) for x in linear_layers(pruned)[0]}
    places = []
    for name in names:
        before, after = theirs[name], ours[name]
        if name not in values or before.dtype.kind != "f" or before.ndim != after.ndim or before.ndim < 2:
            continue
        axes = [i for i in range(before.ndim) if before.shape[i] != after.shape[i]]
        chosen = _rows_of(values[name], rows, before.shape[axes[0]], after.shape[axes[0]]) if axes else None
        if len(axes) > 1 or (axes and chosen is None):
            continue
        axis = axes[0] if axes else 1
        left = before if chosen is None else np.take(before, chosen, axis=axis)
        others = tuple(i for i in range(left.ndim) if i != (axis if left.ndim != 3 or axes else 2))
        variance = float(left.astype(np.float64).var(axis=others).mean())
        if variance > 0:
            places.append(Place(name, axis, chosen, variance))
    return places


def _rows_of(value: ir.Value, rows: Mapping[ir.Node, Index | None], before: int, after: int) -> Index | None:
    """The kept channels of a value: those of a layer behind it, with as many channels before and after."""
    waiting, seen = [value.producer()], set[ir.Node]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in rows:
            chosen = rows[node]
            if chosen is not None and len(chosen) == after and int(chosen.max()) < before:
                return chosen
            continue
        waiting += [v.producer() for v in node.inputs if v is not None]
    return None
