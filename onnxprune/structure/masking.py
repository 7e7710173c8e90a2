"""The masked twin of a removal: the same model with every weight of the removed units set to zero.

It is the oracle of the project: removing units exactly must give the same outputs as this. Where a removed unit lies
on a mixed axis, the node that mixes is run over the surviving indices only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.edit import Editor
from onnxprune.graph.operators import key
from onnxprune.graph.tensors import Array, edited, read, spread
from onnxprune.structure import registry
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.structure import Fill, Keep, Structure
from onnxprune.structure.terms import Bools


def zero_units(structure: Structure, removed: Bools) -> None:
    """Zero all sites of the removed atoms in the structure's model, in place. Nothing changes its shape.

    Args:
        structure: The analysis of the model; it is of no further use afterwards.
        removed: Flags by atom id, shape (number of ids,).
    """
    keep = structure.keep(removed)
    lost = _maskable_sites(structure, keep)
    _wrap_mixing_nodes(structure, keep, Rewriter(structure, keep))
    for value, axes in lost:
        edit_constant(structure.model, value, partial(_zeroed, fill=structure.fills.get(value), axes=axes))


def zeroed_units(
    structure: Structure, removed: Bools, others: Mapping[str, Array] = MappingProxyType({})
) -> list[tuple[ir.Value, Array]]:
    """Return what `zero_units` would write into each constant, and leave the model as it is.

    Args:
        structure: The analysis of the model.
        removed: Flags by atom id, shape (number of ids,).
        others: By name, what some constants hold in place of what they hold in the model.
    """
    return [
        (value, _zeroed(_held(value, others), structure.fills.get(value), axes))
        for value, axes in _maskable_sites(structure, structure.keep(removed))
    ]


def _held(value: ir.Value, others: Mapping[str, Array]) -> Array:
    other = others.get(str(value.name))
    return constant_content(value) if other is None else other


def masked_values(structure: Structure, removed: Bools) -> list[ir.Value]:
    """Return the constants that `zero_units` would write into."""
    return [value for value, _ in _maskable_sites(structure, structure.keep(removed))]


def _maskable_sites(structure: Structure, keep: Keep) -> list[tuple[ir.Value, Mapping[int, Bools]]]:
    """The constants that lose indices and have a zero, with the kept flags of each axis."""
    lost = keep.lost().items()
    return [(v, axes) for v, axes in lost if v not in structure.unmasked and _maskable(structure, v)]


def _zeroed(array: Array, fill: Fill | None, axes: Mapping[int, Bools]) -> Array:
    """Zero the indices whose flags are False, for each axis given."""
    array = array.copy()
    zero = zero_of(fill, array)
    for axis, flags in axes.items():
        place = (slice(None),) * axis + (np.flatnonzero(~flags),)
        array[place] = zero[place]
    return array


def _maskable(structure: Structure, value: ir.Value) -> bool:
    return ir.DataType(structure.facts.dtype(value)).is_floating_point() or value in structure.fills


def constant_content(value: ir.Value) -> Array:
    """Return a constant's content, also where it is filled at run time."""
    if value.const_value is not None:
        return read(value.const_value)
    node = value.producer()
    assert node is not None and node.inputs[0] is not None and node.inputs[0].const_value is not None
    shape = [int(n) for n in node.inputs[0].const_value.numpy()]
    fill = node.attributes.get_tensor("value")
    return np.zeros(shape, np.float32) if fill is None else np.full(shape, fill.numpy().reshape(-1)[0])


def zero_of(fill: Fill | None, array: Array) -> Array:
    """Return what zero means at each element: 0, or a quantised weight's zero point."""
    if fill is not None and fill.packed is not None:
        return np.broadcast_to(fill.packed.zeros(), array.shape)
    point = None if fill is None or fill.zero_point is None else fill.zero_point.const_value
    if fill is None or point is None:
        return np.broadcast_to(np.zeros((), array.dtype), array.shape)
    return spread(point.numpy().astype(array.dtype), array.shape, fill.axis)


def edit_constant(model: ir.Model, value: ir.Value, edit: Callable[[Array], Array]) -> None:
    """Give a constant new content of the same shape; one that was filled at run time becomes an initializer.

    Args:
        model: The model.
        value: The constant.
        edit: From its content to the new content; it must not change the array it is given.
    """
    if value.is_initializer() and value.const_value is not None:
        value.const_value = edited(value.const_value, edit, value.const_value.shape.numpy())
        return
    value.replace_all_uses_with(Editor(model).constant(edit(constant_content(value)), f"{value.name}_filled"))


Cuts = list[tuple[int, Bools]]
"""Which indices survive on each axis of a value that loses some."""


def _wrap_mixing_nodes(structure: Structure, keep: Keep, rewriter: Rewriter) -> None:
    wrapped: list[tuple[ir.Node, list[Cuts], list[Cuts]]] = []
    for node, places in structure.mixed.items():
        if any(v is not None and rewriter.lost(v, i) for v, i in ((node.inputs[k], i) for k, i in places)):
            inputs = [[] if v is None else _lost_axes(structure, keep, v) for v in node.inputs]
            wrapped.append((node, inputs, [_lost_axes(structure, keep, v) for v in node.outputs]))
    users = {out: list(out.uses()) for node, _, _ in wrapped for out in node.outputs}
    for node, _, _ in wrapped:  # all of them while their operands are still those of the analysis
        rewrite = registry.find_rewriter(key(node.domain, node.op_type))
        if rewrite is not None:
            rewrite(rewriter, node)
    for node, inputs, outputs in wrapped:
        _run_on_survivors(structure, rewriter, node, inputs, outputs, users)


def _run_on_survivors(
    structure: Structure,
    rewriter: Rewriter,
    node: ir.Node,
    inputs: list[Cuts],
    outputs: list[Cuts],
    users: Mapping[ir.Value, Sequence[tuple[ir.Node, int]]],
) -> None:
    """Let a node see only surviving indices: Gather before it, zeros put back behind it."""
    for k, cuts in enumerate(inputs):
        for i, flags in cuts:
            indices = rewriter.constant(np.flatnonzero(flags), node)
            node.replace_input_with(k, rewriter.edit.before(node, "Gather", [node.inputs[k], indices], {"axis": i}))
    for out, cuts in zip(node.outputs, outputs, strict=True):
        current = out
        if out in structure.picks:  # positions among survivors are those of the original again
            kept = np.flatnonzero(rewriter.keep.ids(structure.picks[out]))
            current = _behind(rewriter, out, "Gather", [rewriter.constant(kept, node), out], {})
        for i, flags in cuts:
            padded = _pad_one(rewriter, node, current, i, len(structure.axes[out]))
            place = np.where(flags, np.cumsum(flags) - 1, int(flags.sum()))
            current = _behind(rewriter, padded, "Gather", [padded, rewriter.constant(place, node)], {"axis": i})
        if current is not out:
            for user, index in users[out]:
                user.replace_input_with(index, current)


def _lost_axes(structure: Structure, keep: Keep, value: ir.Value) -> Cuts:
    axes = structure.axes.get(value, [])
    return [(i, f) for i, a in enumerate(axes) if not isinstance(a, Dynamic) and not (f := keep.ids(a)).all()]


def _pad_one(rewriter: Rewriter, node: ir.Node, value: ir.Value, axis: int, rank: int) -> ir.Value:
    """Append one zero along an axis of a value that a node, or what stands behind it, computes."""
    pads = [0] * (2 * rank)
    pads[rank + axis] = 1
    if rewriter.opset < 11:
        return _behind(rewriter, value, "Pad", [value], {"pads": pads})
    near = value.producer() or node
    return _behind(rewriter, value, "Pad", [value, rewriter.constant(np.array(pads, np.int64), near)], {})


def _behind(
    rewriter: Rewriter, value: ir.Value, op_type: str, inputs: list[ir.Value | None], attributes: Mapping[str, Any]
) -> ir.Value:
    """Insert a node behind the one that computes a value; return its output."""
    producer = value.producer()
    assert producer is not None
    return rewriter.edit.after(producer, op_type, inputs, attributes)
