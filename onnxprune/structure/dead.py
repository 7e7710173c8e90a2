"""Which units nobody reads: all weights on the axes that consume them are zero (Han et al. 2015, section 3.5).

An atom is *consumed* where an axis that carries it is summed over. If every place that consumes it is the weight of a
contraction and that weight is zero there, the outputs do not depend on the unit, and removing it is exact. An atom
that is consumed in any other way (by another activation, by a reduction, inside an attention operator) *leaks*.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.layers import contraction_sites, slots_of
from onnxprune.graph.operators import operator_of
from onnxprune.model_io.bodies import nodes_of
from onnxprune.structure.axes import parts
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools, Ids


def dead_atoms(structure: Structure) -> Bools:
    """Return which atoms can be removed exactly as the model stands: flags by atom id.

    Those that nothing reads, and those of which every weight is zero already.
    """
    leaks = np.zeros(structure.terms.count, bool)
    consumed = np.zeros(structure.terms.count, bool)
    read = np.zeros(structure.terms.count, bool)
    for node in nodes_of(structure.model.graph):
        for ids, used in _readers(structure, node, leaks):
            rows, atoms = structure.members(ids)
            consumed[atoms] = True
            read[atoms[used[rows]]] = True
    exact = np.zeros(structure.terms.count, bool)
    for group in structure.groups:
        if not group.inexact:
            exact[group.atoms] = True
    return exact & ((consumed & ~read & ~leaks) | _all_zero(structure))


def _all_zero(structure: Structure) -> Bools:
    """Return which atoms have no weight that is not zero, on any of their sites."""
    zero = np.ones(structure.terms.count, bool)
    for value in structure.sources:
        if value in structure.unmasked:
            continue
        for axis in range(len(structure.axes[value])):
            ids = structure.ids(value, axis)
            if ids is None:
                continue
            rows, atoms = structure.members(ids)
            if not len(atoms):
                continue
            if value in structure.fills or value.const_value is None:
                zero[atoms] = False  # quantised, or filled at run time
            else:
                zero[atoms[_nonzero_along(value.const_value.numpy(), axis)[rows]]] = False
    return zero


def _readers(structure: Structure, node: ir.Node, leaks: Bools) -> Iterator[tuple[Ids, Bools]]:
    """Yield, for each constant axis that a node sums over, its ids and where it is not zero; note what leaks."""
    operator = operator_of(node)
    operands = [v for v in node.inputs if v is not None]
    sums = operator.weights and operator.kind in ("conv", "fc", "rnn") and not operator.knows_zero_points
    if sums and slots_of(node):
        views = {v: view for v in operands[:3] if (view := constant_view(structure, v)) is not None}
        for data, axis, weight, place in contraction_sites(node, set(views)):
            value, x = node.inputs[weight], node.inputs[data]
            ids = None if value is None else structure.ids(value, place)
            if ids is not None and value in views:
                yield ids, _nonzero_along(views[value], place)
            elif x is not None:
                _leak(structure, x, leaks, axis)
    elif operator.shape_only or not operands:
        return
    elif operator.passes_units:
        passed = _atoms_of(structure, list(node.outputs))
        leaks[np.setdiff1d(_atoms_of(structure, operands), passed)] = True
    else:
        leaks[_atoms_of(structure, operands)] = True


def constant_view(structure: Structure, value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """Return the content of an operand that is an initializer, moved or cast; None for any other."""
    if value is None:
        return None
    if value.is_initializer():
        return None if value.const_value is None else value.const_value.numpy()
    node = value.producer()
    if node is None or not operator_of(node).view:
        return None
    array, shape = constant_view(structure, node.inputs[0]), structure.facts.shape(value)
    if array is None or shape is None or None in shape:
        return None
    if node.op_type == "Transpose":
        return array.transpose(node.attributes.get_ints("perm"))
    return array.reshape([int(n or 0) for n in shape])


def _nonzero_along(array: npt.NDArray[np.generic], axis: int) -> Bools:
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    flags: Bools = (array != np.zeros((), array.dtype)).any(axis=others)
    return flags


def _leak(structure: Structure, value: ir.Value, leaks: Bools, axis: int) -> None:
    for ids in parts(structure.axes[value][axis]) if value in structure.axes else ():
        leaks[structure.members(ids)[1]] = True


def _atoms_of(structure: Structure, values: list[ir.Value]) -> Ids:
    atoms = [structure.members(ids)[1] for v in values for a in structure.axes.get(v, ()) for ids in parts(a)]
    return np.unique(np.concatenate(atoms)) if atoms else np.zeros(0, np.int64)
