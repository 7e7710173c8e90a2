"""A weight as a matrix: which of its axes is summed over, which counts outputs, and how many groups there are.

The table of operators says where the axes lie at the node; here they are followed back to the tensor that holds the
numbers, through whatever stands between: Transpose, Reshape, Cast, DequantizeLinear, the lookup of experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.graph.operators import operator_of
from onnxprune.graph.properties import Slot

_LONGEST = 8  # nodes between a weight and the operator that reads it

Axes = tuple[int | None, ...]
"""For each axis of a value, which axis of the weight it is; None where it is none of these."""


@dataclass(frozen=True)
class MatrixAxes:
    """The axes of a weight.

    Attributes:
        reduction: The axis that is summed over: input channels of a Conv, K of a MatMul or Gemm.
        output: The axis that counts outputs.
        groups: In how many parts the first axis at the node is divided, each with inputs and outputs of its own.
        grouped: The axis of the weight that the groups lie on.
    """

    reduction: int
    output: int
    groups: int = 1
    grouped: int | None = None

    def summed(self, shape: Sequence[int]) -> int:
        """Return how many indices of the reduction axis one output sums over, for a weight of this shape."""
        return shape[self.reduction] // (self.groups if self.grouped == self.reduction else 1)


def matrix_axes(value: ir.Value, node: ir.Node, shape: Sequence[int] | None = None) -> MatrixAxes | None:
    """Return the axes of a weight, None where its operator or what lies between gives it none.

    Args:
        value: The tensor that holds the numbers.
        node: The operator that it is the weight of.
        shape: Of the value, where it does not know that itself.
    """
    reached = _reached(value, node, shape)
    if reached is None:
        return None
    slot, axes = reached
    output, reduction = axes_at_node(slot, node, len(axes))
    if output is None or axes[output] is None or axes[reduction] is None:
        return None
    groups = group_count(node)
    return MatrixAxes(int(axes[reduction] or 0), int(axes[output] or 0), groups, axes[0] if groups > 1 else None)


def axes_at_node(slot: Slot, node: ir.Node, rank: int) -> tuple[int | None, int]:
    """Return the output axis and the reduction axis of a weight of some rank where its operator reads it.

    A vector has no output axis.
    """
    if rank == 1:
        return None, 0
    swapped = bool(slot.swap) and node.attributes.get_int(slot.swap, 0) != 0
    output, reduction = (slot.reduction, slot.output) if swapped else (slot.output, slot.reduction)
    return output % rank, reduction % rank


def data_axis(slot: Slot, node: ir.Node, rank: int | None) -> int:
    """Return the axis of the data that a slot's weight is summed with."""
    if rank == 1:
        return 0
    swapped = bool(slot.data_swap) and node.attributes.get_int(slot.data_swap, 0) != 0
    return {-1: -2, -2: -1}[slot.data_axis] if swapped else slot.data_axis


def result_axis(slot: Slot, node: ir.Node) -> int:
    """Return the axis of a contraction's output that counts outputs: 1 of a feature map, -1 of rows, -2 of columns."""
    if operator_of(node).kind == "conv":
        return 1
    return -1 if slot.data < slot.input else -2


def activation_of(node: ir.Node) -> str:
    """Return the activation that a fused node applies to its own result, empty for none."""
    return node.attributes.get_string("activation", "")


def activation_settings(node: ir.Node) -> dict[str, float] | None:
    """Return the attributes of the activation that a fused node applies, None where they cannot be told.

    A fused LeakyRelu holds its alpha in ``activation_alpha`` (FusedGemm) or ``activation_params`` (FusedConv).
    """
    if activation_of(node) == "LeakyRelu":
        parameters = node.attributes.get_floats("activation_params", ())
        return {"alpha": float(parameters[0] if parameters else node.attributes.get_float("activation_alpha", 0.01))}
    return None if any(name.startswith("activation_") for name in node.attributes) else {}


def slot_of(value: ir.Value, node: ir.Node, shape: Sequence[int] | None = None) -> Slot | None:
    """Return which input of a node a weight reaches, None where it reaches none that takes weights."""
    reached = _reached(value, node, shape)
    return None if reached is None else reached[0]


def group_count(node: ir.Node) -> int:
    """Return into how many groups a contraction divides its channels."""
    grouped = operator_of(node).grouped
    if grouped != "each channel":
        return node.attributes.get_int(grouped, 1) if grouped else 1
    shape = _shape(node.inputs[1])
    return shape[0] if shape else 1


def slots_of(node: ir.Node) -> tuple[Slot, ...]:
    """Return where the weights of a node may be; those of an Einsum follow from its equation."""
    operator = operator_of(node)
    if any(node.attributes.get_int(name, 0) for name in ("transBatchA", "transBatchB")):
        return ()
    slots = _einsum_slots(node) if operator.equation else operator.weights
    return tuple(slot for slot in slots if not slot.packed and _input(node, slot.input) is not None)


def weight_operands(node: ir.Node) -> list[ir.Value]:
    """Return the operands of a contraction that may be its weights."""
    operator = operator_of(node)
    places = range(len(node.inputs)) if operator.equation else [slot.input for slot in operator.weights]
    return [value for i in places if (value := _input(node, i)) is not None]


def contraction_sites(node: ir.Node, constant: set[ir.Value]) -> list[tuple[int, int, int, int]]:
    """Return (data input, its axis, weight input, its axis) for each summed pair of axes of a contraction.

    Of a product of two operands the constant one is the weight, the second one where both are.
    """
    slots = slots_of(node)
    if len(slots) == 2 and slots[0].data == slots[1].input:
        slots = slots[:1] if node.inputs[slots[0].input] in constant else slots[1:]
    sites = []
    for slot in slots:
        rank = len(_shape(node.inputs[slot.input]) or (0, 0, 0))
        data = _shape(_input(node, slot.data))
        axis = data_axis(slot, node, None if data is None else len(data))
        _, reduction = axes_at_node(slot, node, rank)
        place = reduction if rank == 1 or slot.reduction >= 0 else reduction - rank
        sites.append((slot.data, axis, slot.input, place))
    return sites


def data_width(node: ir.Node, index: int, rank: int) -> tuple[int, int] | None:
    """Return the axis of a contraction's input that its constant weight sums over, and the extent that it must have."""
    for slot in slots_of(node):
        weight = node.inputs[slot.input]
        shape = _shape(weight) if weight is not None and weight.const_value is not None else None
        if slot.data == index and slot.input != index and shape is not None:
            axis, (_, reduction) = data_axis(slot, node, rank), axes_at_node(slot, node, len(shape))
            return axis, shape[reduction] * (group_count(node) if reduction != 0 else 1)
    return None


def output_axis(value: ir.Value, node: ir.Node, shape: Sequence[int] | None = None) -> int | None:
    """Return the axis of a weight that counts outputs, None where there is none."""
    axes = matrix_axes(value, node, shape)
    return None if axes is None else axes.output


def channel_axis(value: ir.Value) -> int | None:
    """Return the axis along which a weight has one scale for each index: its outputs, or the rows of a table.

    Every reader must be one that takes weights; the first decides. Where the axis is lost behind a Reshape it is taken
    to be 0, the layout of PyTorch's Linear. None where the value is no weight of a known operator.
    """
    shape = _shape(value)
    if shape is None or value.is_graph_output():
        return None
    channel_axes = [_channel(node, index, axes) for node, index, axes in _readers(value, shape)]
    return channel_axes[0] if channel_axes and None not in channel_axes else None


def _channel(node: ir.Node, index: int, axes: Axes | None) -> int | None:
    """The axis of a weight that counts outputs of one of its readers; None for a reader that takes no weights there."""
    operator = operator_of(node)
    if index in operator.tables:
        at_node = node.attributes.get_int("axis", 0)
    elif operator.equation or any(slot.input == index for slot in operator.weights if not slot.packed):
        slot = next((slot for slot in slots_of(node) if slot.input == index), None)
        output = None if slot is None or axes is None else axes_at_node(slot, node, len(axes))[0]
        at_node = output or 0
    else:
        return None
    return 0 if axes is None else axes[at_node] or 0


def fan_in(value: ir.Value, node: ir.Node) -> int:
    """Return how many inputs one output sums over, kernel included; 0 where that means nothing."""
    shape, axes = _shape(value), matrix_axes(value, node)
    if shape is None or axes is None:
        return 0
    kernel = math.prod(shape) // max(1, shape[axes.reduction] * shape[axes.output])
    return axes.summed(shape) * (kernel if operator_of(node).kind == "conv" else 1)


# -- from the tensor to the node ------------------------------------------------------------------------------------


def _reached(value: ir.Value, node: ir.Node, shape: Sequence[int] | None) -> tuple[Slot, Axes] | None:
    """The slot of a node that a weight reaches, and the weight's axis for each axis there."""
    extents = _shape(value) if shape is None else tuple(shape)
    if extents is None:
        return None
    for reader, index, axes in _readers(value, extents, node):
        slot = next((slot for slot in slots_of(reader) if slot.input == index), None)
        if reader is node and slot is not None and axes is not None:
            return slot, axes
    return None


def _readers(
    value: ir.Value, shape: tuple[int, ...], target: ir.Node | None = None
) -> Iterator[tuple[ir.Node, int, Axes | None]]:
    """The nodes that read a constant behind views of it: (node, input, its axes there, None where they are lost).

    On the way to a target the numbers may also be dequantised, or some of them be picked.
    """
    waiting: list[tuple[ir.Value, Axes | None, tuple[int, ...], int]] = [(value, tuple(range(len(shape))), shape, 0)]
    while waiting:
        current, axes, extents, depth = waiting.pop(0)
        for node, index in current.uses():
            operator = operator_of(node)
            picks = target is not None and (operator.dequantises or bool(operator.tables) or picks_first(node))
            if index != 0 or node is target or depth == _LONGEST or not (operator.view or picks):
                yield node, index, axes
                continue
            after, moved = _moved(node, axes, extents)
            waiting.append((node.outputs[0], moved, after, depth + 1))


def picks_first(node: ir.Node) -> bool:
    """Say whether a GatherND picks along the first axis alone, as a Gather does: its tuples hold one index each."""
    picked = node.inputs[1] if node.op_type == "GatherND" else None
    shape = None if picked is None else picked.shape
    return shape is not None and shape[-1] == 1 and node.attributes.get_int("batch_dims", 0) == 0


def _moved(node: ir.Node, axes: Axes | None, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Axes | None]:
    """The shape and the axes behind a node that only moves numbers; unknown axes where they are merged or divided."""
    if axes is None:
        return shape, None
    operator = operator_of(node)
    if operator.tables or picks_first(node):
        axis, picked = node.attributes.get_int("axis", 0) % len(shape), node.inputs[1]
        # Where the rank of the indices is not known, 1 stands for it: a product counts its axes from the end.
        rank = 1 if picked is None or picked.shape is None else len(picked.shape) - picks_first(node)
        new: Axes = (*axes[:axis], *[None] * rank, *axes[axis + 1 :])
        return (*shape[:axis], *[1] * rank, *shape[axis + 1 :]), new
    if operator.movement == "permute":
        order = [int(i) for i in node.attributes.get_ints("perm") or range(len(shape))[::-1]]
        return tuple(shape[i] for i in order), tuple(axes[i] for i in order)
    if operator.movement == "reshape":
        after = _reshaped(node, shape)
        real = [i for i, n in enumerate(shape) if n != 1]
        if after is None or [shape[i] for i in real] != [n for n in after if n != 1]:
            return after or shape, None
        left = iter(real)
        return after, tuple(None if n == 1 else axes[next(left)] for n in after)
    return shape, axes


def _reshaped(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape behind a Reshape, Flatten, Squeeze or Unsqueeze; None where it is not known."""
    rank, target = len(shape), _integers(node)
    match node.op_type:
        case "Flatten":
            axis = node.attributes.get_int("axis", 1) % (rank + 1)
            return math.prod(shape[:axis]), math.prod(shape[axis:])
        case "Squeeze":
            gone = {i % rank for i in target} if target else {i for i, n in enumerate(shape) if n == 1}
            return tuple(n for i, n in enumerate(shape) if i not in gone)
        case "Unsqueeze" if target:
            new, left = {i % (rank + len(target)) for i in target}, iter(shape)
            return tuple(1 if i in new else next(left) for i in range(rank + len(target)))
        case "Reshape" if target:
            fixed = [shape[i] if n == 0 and i < rank else n for i, n in enumerate(target)]
            rest = math.prod(shape) // max(1, math.prod(n for n in fixed if n != -1))
            return tuple(rest if n == -1 else n for n in fixed)
        case _:
            return _shape(node.outputs[0])


def _integers(node: ir.Node) -> list[int] | None:
    """Axes or a target shape: an attribute in old opsets, a constant input in new ones."""
    for name in ("axes", "shape"):
        if name in node.attributes:
            return [int(i) for i in node.attributes.get_ints(name) or ()]
    value = _input(node, 1)
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(i) for i in tensor.numpy().reshape(-1)]


def _einsum_slots(node: ir.Node) -> tuple[Slot, ...]:
    """The operands that have one letter for outputs and one that is summed with another operand."""
    left, arrow, right = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        right = "".join(c for c in sorted(set(left)) if c.isalpha() and left.count(c) == 1)
    slots = []
    for i, term in enumerate(terms):
        others = [(j, other) for j, other in enumerate(terms) if j != i]
        outputs = [c for c in term if c.isalpha() and c in right and not any(c in other for _, other in others)]
        summed = [c for c in term if c.isalpha() and c not in right and any(c in other for _, other in others)]
        if len(outputs) == 1 and len(summed) == 1 and len(set(term)) == len(term) - 2 * ("..." in term):
            data, other = next((j, other) for j, other in others if summed[0] in other)
            places = (_letter(term, outputs[0]), _letter(term, summed[0]), data, _letter(other, summed[0]))
            slots.append(Slot(i, places[0], places[1], data=places[2], data_axis=places[3]))
    return tuple(slots)


def _letter(term: str, letter: str) -> int:
    """The axis of a letter: counted from the end where dots stand before it."""
    place = term.index(letter)
    return place - len(term) if "..." in term[:place] else place


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    shape = value.const_value.shape if value.const_value is not None else value.shape
    if shape is None or not all(isinstance(n, int) for n in shape):
        return None
    return tuple(int(n) for n in shape)  # type: ignore[arg-type]
