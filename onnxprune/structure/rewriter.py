"""What a rewriter of an operator works with: extents after the cut, constants, attributes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.edit import Editor
from onnxprune.structure.axes import Dynamic, parts
from onnxprune.structure.structure import Keep, Structure
from onnxprune.structure.terms import Bools


class Rewriter:
    """Rewrites a model node by node; what node rewriters see of it."""

    def __init__(self, structure: Structure, keep: Keep) -> None:
        self.structure = structure
        self.facts = structure.facts
        self.keep = keep
        self.opset = structure.model.opset_imports.get("", 1)
        self.edit = Editor(structure.model)

    # -- what is left -------------------------------------------------------------------------------------------

    def flags(self, value: ir.Value | None, axis: int) -> Bools:
        """Return which indices of a static axis survive, shape (n,)."""
        assert value is not None
        kept = self.keep.axis(value, axis)
        if kept is None:
            raise ValueError(f"axis {axis} of {value.name} has no fixed extent")
        return kept

    def extent(self, value: ir.Value | None, axis: int) -> int | None:
        """Return the new extent of an axis, None where it is not fixed."""
        kept = None if value is None else self.keep.axis(value, axis)
        if kept is not None:
            return int(kept.sum())
        shape = None if value is None else self.facts.shape(value)
        return None if shape is None or value is None or not self.facts.static(value, axis) else shape[axis]

    def lost(self, value: ir.Value, axis: int) -> bool:
        """Say whether an axis loses anything, also in the static part of a dynamic axis."""
        axes = self.structure.axes.get(value)
        return axes is not None and any(not self.keep.whole(ids) for ids in parts(axes[axis]))

    def old(self, value: ir.Value, axis: int) -> int:
        """Return the old extent of a static axis."""
        return int((self.facts.shape(value) or ())[axis] or 0)

    def left(self, value: ir.Value, axis: int) -> tuple[int, int]:
        """Return how many units the static part of an axis had and has: (8, 6) of batch x heads with 8 heads."""
        factors = parts(self.structure.axes[value][axis])
        kept = [self.keep.ids(ids) for ids in factors]
        return math.prod(len(flags) for flags in kept), math.prod(int(flags.sum()) for flags in kept)

    # -- changing nodes -----------------------------------------------------------------------------------------

    def set_attribute(self, node: ir.Node, name: str, content: int | float | str | list[int]) -> None:
        """Write an attribute."""
        node.attributes[name] = ir.convenience.convert_attribute(name, content)

    def set_input(self, node: ir.Node, i: int, array: npt.NDArray[np.generic]) -> None:
        """Let a node read a new constant; other users of the old one are not touched."""
        if i >= len(node.inputs):
            node.resize_inputs(i + 1)
        node.replace_input_with(i, self.constant(array, node))

    def constant(self, array: npt.NDArray[np.generic], near: ir.Node) -> ir.Value:
        """Return a constant of the outermost graph with this content."""
        return self.edit.shared_constant(array, f"{near.outputs[0].name}_extent")

    def patch_extents(self, node: ir.Node, i: int, value: ir.Value, *, infer_one: bool = False) -> None:
        """Correct input ``i``, the shape that a node gives to ``value``, where axes of the value changed.

        Args:
            node: A Reshape, Expand, ConstantOfShape, ...
            i: Which input holds the shape, one entry for each axis of ``value``.
            value: The value whose axes count.
            infer_one: Whether a -1 stands for "whatever is left", as in Reshape.
        """
        rank = len(self.facts.shape(value) or ())
        new = [self.extent(value, axis) for axis in range(rank)]
        changed = [axis for axis in range(rank) if self.lost(value, axis)]
        data = self.facts.data(node.inputs[i])
        if data is not None:
            target = data.astype(np.int64).copy()
            for axis in changed:
                extent = new[axis]
                # A dynamic axis has no number here: its entry is -1 or 0 already.
                target[axis] = target[axis] if extent is None else self._not_broadcast(int(target[axis]), extent)
            self.set_input(node, i, target)
        elif infer_one and sum(n is None for n in new) <= 1:
            self.set_input(node, i, np.array([-1 if n is None else n for n in new], np.int64))
        elif changed:
            self._patch_computed(node, i, value, changed)

    def _patch_computed(self, node: ir.Node, i: int, value: ir.Value, changed: Sequence[int]) -> None:
        """Correct a shape that is computed while the model runs, from the original extents of other values."""
        rank = len(self.facts.shape(value) or ())
        entries = None if node.inputs[i] is None else self.facts.first.data.get(node.inputs[i])  # type: ignore[arg-type]
        fixed = {axis: n for axis in changed if (n := self.extent(value, axis)) is not None}
        scaled = {axis: self.left(value, axis) for axis in changed
                  if axis not in fixed and (entries is None or entries[axis] > 1)}  # fmt: skip
        shape = node.inputs[i]
        if scaled:
            after = np.array([scaled[axis][1] if axis in scaled else 1 for axis in range(rank)], np.int64)
            before = np.array([scaled[axis][0] if axis in scaled else 1 for axis in range(rank)], np.int64)
            shape = self.scaled(shape, after, before, node)
        if fixed:
            mask = np.array([axis in fixed for axis in range(rank)])
            shape = self.where(mask, np.array([fixed.get(axis, 0) for axis in range(rank)], np.int64), shape, node)
        node.replace_input_with(i, shape)

    @staticmethod
    def _not_broadcast(entry: int, extent: int) -> int:
        """An Expand target may say 1 where its input decides; that stays."""
        return entry if entry == 1 else extent

    def where(
        self, mask: npt.NDArray[np.bool_], array: npt.NDArray[np.int64], value: ir.Value | None, before: ir.Node
    ) -> ir.Value:
        """Insert Where(mask, array, value) before a node and return its output."""
        condition, constant = self.constant(mask, before), self.constant(array, before)
        return self.edit.before(before, "Where", [condition, constant, value])

    def scaled(
        self, value: ir.Value | None, times: npt.NDArray[np.int64], over: npt.NDArray[np.int64], before: ir.Node
    ) -> ir.Value:
        """Insert value * times / over, integers that divide without a rest, before a node and return the result."""
        product = self.edit.before(before, "Mul", [value, self.constant(times, before)])
        return self.edit.before(before, "Div", [product, self.constant(over, before)])

    def update_shapes(self) -> None:
        for value, axes in self.structure.axes.items():
            if not self.keep.changed(value) or value.shape is None or len(value.shape) != len(axes):
                continue
            dims = list(value.shape)
            for i, axis in enumerate(axes):
                if isinstance(axis, Dynamic):
                    dims[i] = ir.SymbolicDim(None) if self.lost(value, i) else dims[i]
                else:
                    dims[i] = dims[i] if self.keep.whole(axis) else int(self.keep.ids(axis).sum())
            value.shape = ir.Shape(dims)


def cut(array: npt.NDArray[np.generic], axes: Mapping[int, Bools]) -> npt.NDArray[np.generic]:
    """Return the array without the indices whose flags are False, for each axis given."""
    for axis, flags in axes.items():
        array = np.compress(flags, array, axis=axis)
    return np.ascontiguousarray(array)
