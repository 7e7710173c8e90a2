"""Stacks of matrices, one for each expert of a mixture, of which a product reads those that a router picks, or all.

    picked          MatMul(x, Gather(stack, numbers))      each row of x meets the matrix that was picked for it
    side by side    MatMul(x, stack)                       the matrices lie along an axis of the result

So a stack [experts, outputs, inputs] is a matrix with groups, as a grouped convolution has: the rows of a group are
those of one expert. A row of zeros is none, since it says nothing of the weights: graphs that run all experts on all
tokens blank what was not routed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.layers import matrix_axes, picks_first
from onnxprune.graph.operators import operator_of
from onnxprune.graph.properties import Slot

Array = npt.NDArray[np.generic]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Stack:
    """How a product reads a stack of matrices.

    Attributes:
        axis: The axis of the stack that counts experts.
        experts: How many there are.
        picks: The numbers of the experts that were picked; None where the matrices lie side by side.
        nested: Whether each number is a tuple of one, as those of a GatherND.
    """

    axis: int
    experts: int
    picks: ir.Value | None = None
    nested: bool = False

    def numbers(self, picked: Array | None) -> Numbers:
        """Return the expert of each matrix that the product reads: the shape of what was picked, or (experts,)."""
        if picked is None:
            return np.arange(self.experts)
        numbers = np.asarray(picked, np.int64)
        return (numbers[..., 0] if self.nested else numbers) % self.experts


def stack_of(node: ir.Node, slot: Slot) -> tuple[ir.Value, Stack] | str:
    """Return the stack that an operand of a product is made of, and how it is read, or why there is none.

    Args:
        node: A matrix product.
        slot: Of the operand that holds weights.
    """
    value, picking = node.inputs[slot.input], None
    while value is not None and value.const_value is None:
        maker = value.producer()
        if maker is None or len(list(value.uses())) != 1 or value.is_graph_output():
            return "its weight has other uses"
        if _picks(maker):
            if picking is not None:
                return "its matrices are picked twice"
            picking = maker
        elif not operator_of(maker).view or (picking is None and not _swaps_last(maker)):
            return "its weight is computed"
        value = maker.inputs[0]
    if value is None or value.const_value is None or len(list(value.uses())) != 1:
        return "its weight has other uses"
    shape, axes = value.const_value.shape.numpy(), matrix_axes(value, node)
    if len(shape) != 3 or axes is None or axes.groups != 1 or not value.const_value.dtype.is_floating_point():
        return "its weight is no matrix"
    (axis,) = {0, 1, 2} - {axes.output, axes.reduction}
    if picking is None:
        return value, Stack(axis, shape[axis])
    picks = picking.inputs[1]
    if picks is None or picks.const_value is not None:
        return "its matrix is picked by a constant"
    return value, Stack(axis, shape[axis], picks, picks_first(picking))


def _picks(node: ir.Node) -> bool:
    """Whether a node picks matrices along the first axis of what it reads."""
    return picks_first(node) or (bool(operator_of(node).tables) and node.attributes.get_int("axis", 0) == 0)


def _swaps_last(node: ir.Node) -> bool:
    """Whether a node leaves the leading axes of matrices where they are: it turns each of them, or does nothing."""
    if operator_of(node).movement != "permute":
        return operator_of(node).movement in ("same", "cast")
    order = [int(i) for i in node.attributes.get_ints("perm") or ()]
    last = len(order) - 2
    return len(order) > 2 and order[:last] == list(range(last)) and sorted(order[last:]) == [last, last + 1]
