"""What a rule sees of a node: the axes of its inputs, weights and outputs, and how to tie them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.operators import operator_of
from onnxprune.graph.packed import Packed
from onnxprune.graph.shapes import Facts, Shape
from onnxprune.model_io.bodies import bodies, nodes_of
from onnxprune.structure.axes import Axis, Dynamic, parts
from onnxprune.structure.groups import KIND_BITS
from onnxprune.structure.structure import Fill, filled_at_run_time
from onnxprune.structure.terms import Ids, Terms

# Narrow integers are taken for quantised: "zero" means their zero point. Besides the rules that know zero points, only
# operators that move values may say so of them.
_NARROW = set(map(int, (
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT4, ir.DataType.UINT4,
    ir.DataType.INT2, ir.DataType.UINT2,
)))  # fmt: skip


class RuleMismatch(Exception):
    """A rule met a node that it cannot describe; the node is pinned with this text as the reason."""


@dataclass(eq=False)
class Findings:
    """What a walk over a model has found so far.

    Attributes:
        model: The model.
        facts: Shapes and constants of its values.
        walk: Applies the rule of every node of a graph, in order.
        unmasked: Constants that masking never zeroes.
        axes: The terms of every axis, by value.
        zero: For each axis, whether its removed indices hold exactly zero.
        fills: What zero is for quantised constants.
        weights: Weights, with the node that they belong to.
        mixed: Axes whose indices a node mixes.
        picks: Integers that are indices of an axis, such as those of the experts that a router takes, with its terms.
        least: Axes that must keep so many indices.
        divided: The last dynamic axis with a static part, such as batch x heads, by its extents at both settings.
        unruled: Operators without a rule, by node: the body of a loop may be walked twice.
    """

    model: ir.Model
    facts: Facts
    walk: Callable[[Findings, ir.Graph], None]
    unmasked: set[ir.Value]
    terms: Terms = field(default_factory=Terms)
    axes: dict[ir.Value, list[Axis]] = field(default_factory=dict)
    zero: dict[ir.Value, list[bool]] = field(default_factory=dict)
    fills: dict[ir.Value, Fill] = field(default_factory=dict)
    weights: dict[ir.Value, ir.Node] = field(default_factory=dict)
    mixed: dict[ir.Node, list[tuple[int, int]]] = field(default_factory=dict)
    picks: dict[ir.Value, Ids] = field(default_factory=dict)
    least: list[tuple[Ids, int]] = field(default_factory=list)
    divided: dict[tuple[int | None, int | None], Dynamic] = field(default_factory=dict)
    unruled: dict[ir.Node, str] = field(default_factory=dict)

    def still(self, value: ir.Value, reason: str) -> None:
        """Give a value axes that are never cut."""
        dims = self.facts.dims(value)
        if dims is None:
            return
        if value in self.axes:
            for axis in self.axes[value]:
                for ids in parts(axis):
                    self.terms.pin(ids, reason)
            return
        self.axes[value] = [
            self.terms.pinned_axis(int(a or 0), reason) if self.facts.static(value, i) else Dynamic()
            for i, (a, _) in enumerate(dims)
        ]
        self.zero[value] = [False] * len(dims)


class View:
    """What a rule sees of one node, and what it may say.

    Axis indices may be negative. Zero flags say whether the removed indices of an axis hold exactly zero when the
    weights of the removed unit are zeroed: only then may they be summed over without changing anything.
    """

    def __init__(self, findings: Findings, node: ir.Node) -> None:
        self.findings = findings
        self.node = node
        self.terms = findings.terms
        self.facts = findings.facts
        self.opset = findings.model.opset_imports.get(node.domain, 1)
        operator = operator_of(node)
        self.picked_by_rule = False
        self._zero_points = operator.knows_zero_points or operator.keeps_zero_point

    # -- what the node is ---------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The node as users know it."""
        return f"{self.node.op_type} {self.node.name or self.node.outputs[0].name}"

    def x(self, i: int) -> ir.Value | None:
        """Return input ``i``, None where it is absent."""
        return self.node.inputs[i] if i < len(self.node.inputs) else None

    def need(self, i: int) -> ir.Value:
        """Return input ``i``, which must be there and of known rank."""
        value = self.x(i)
        if value is None or self.facts.shape(value) is None:
            raise RuleMismatch(f"the shape of input {i} is not known")
        return value

    def out(self, i: int = 0) -> ir.Value | None:
        """Return output ``i`` where the node has it and somebody may read it."""
        return self.node.outputs[i] if i < len(self.node.outputs) and self.node.outputs[i].name != "" else None

    def shape(self, value: ir.Value) -> Shape:
        """Return the concrete shape of a value at the first setting."""
        shape = self.facts.shape(value)
        if shape is None:
            raise RuleMismatch(f"the shape of {value.name} is not known")
        return shape

    def rank(self, value: ir.Value) -> int:
        """Return the number of axes of a value."""
        return len(self.shape(value))

    def data(self, i: int) -> npt.NDArray[np.generic] | None:
        """Return the content of input ``i`` where it is known before the model runs."""
        return self.facts.data(self.x(i))

    def int_attr(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        return int(self.node.attributes.get_int(name, default))

    def ints_attr(self, name: str) -> list[int] | None:
        """Return an attribute that is a list of integers, None where it is absent."""
        numbers = self.node.attributes.get_ints(name)
        return None if numbers is None else [int(i) for i in numbers]

    def numbers(self, i: int, attribute: str) -> list[int] | None:
        """Return integers that are an attribute in old opsets and an input in new ones; None where not known."""
        if attribute in self.node.attributes:
            return self.ints_attr(attribute)
        data = self.data(i)
        return None if data is None else [int(d) for d in np.atleast_1d(data)]

    # -- axes ---------------------------------------------------------------------------------------------------

    def axes(self, value: ir.Value) -> list[Axis]:
        """Return the axes of an operand; an initializer gets fresh atoms when it is first met."""
        state = self.findings
        if value not in state.axes:
            if value.is_initializer():
                shape = self.shape(value)
                state.axes[value] = [
                    state.terms.fresh(int(n or 0)) if n != 1 else state.terms.pinned_axis(1, "an axis of extent 1")
                    for n in shape
                ]
                maskable = value.dtype is not None and value.dtype.is_floating_point()
                state.zero[value] = [maskable and value not in state.unmasked] * len(shape)
            else:
                state.still(value, f"{self.name}: nothing is known about its input {value.name}")
        if value not in state.axes:
            raise RuleMismatch(f"the shape of {value.name} is not known")
        return state.axes[value]

    def axis(self, value: ir.Value, i: int) -> Axis:
        """Return one axis of an operand."""
        return self.axes(value)[i]

    def zero(self, value: ir.Value) -> list[bool]:
        """Return the zero flags of an operand's axes."""
        self.axes(value)
        flags = self.findings.zero[value]
        return flags if self._zero_points or not self._narrow(value) else [False] * len(flags)

    def _narrow(self, value: ir.Value) -> bool:
        return int(self.facts.dtype(value)) in _NARROW

    def ids(self, value: ir.Value, i: int) -> Ids:
        """Return the ids of a static axis.

        Raises:
            RuleMismatch: The axis has no known extent.
        """
        axis = self.axis(value, i)
        if isinstance(axis, Dynamic):
            raise RuleMismatch(f"axis {i} of {value.name} has no fixed extent")
        return axis

    def unify(self, a: Axis, b: Axis) -> None:
        """Tie two axes index by index; where they do not match both are pinned."""
        ours, theirs = parts(a), parts(b)
        same = isinstance(a, Dynamic) == isinstance(b, Dynamic) and len(ours) == len(theirs)
        if same and isinstance(a, Dynamic) and isinstance(b, Dynamic):
            same = [f is None for f in a.factors] == [f is None for f in b.factors]
        if same and all(len(p) == len(q) for p, q in zip(ours, theirs, strict=True)):
            for p, q in zip(ours, theirs, strict=True):
                self.terms.unify(p, q)
        else:
            for ids in (*ours, *theirs):
                self.terms.pin(ids, f"{self.name}: its operands have axes that do not match")

    def pin(self, axis: Axis, reason: str) -> None:
        """Never cut an axis."""
        for ids in parts(axis):
            self.terms.pin(ids, f"{self.name}: {reason}")

    def mix(self, operand: int, i: int, reason: str, atoms: Ids | None = None) -> None:
        """Say that removing an index of axis ``i`` of input ``operand`` changes what is left, so it is not exact.

        With ``atoms`` that holds only for these, as for the members of a group and not for the group as a whole.
        """
        value = self.need(operand)
        i %= self.rank(value)
        for ids in parts(self.axis(value, i)) if atoms is None else (atoms,):
            self.terms.mix(ids, f"{self.name}: {reason}")
        self.findings.mixed.setdefault(self.node, []).append((operand, i))

    def tag(self, axis: Axis, kind: str) -> None:
        """Say what the units of an axis are called."""
        for ids in parts(axis):
            self.terms.tag(ids, KIND_BITS[kind])

    def still(self, n: int | None, reason: str) -> Axis:
        """Make a new axis that is never cut; ``n`` None for unknown extent."""
        return Dynamic() if n is None else self.terms.pinned_axis(n, f"{self.name}: {reason}")

    def still_axis(self, value: ir.Value, i: int, reason: str) -> Axis:
        """Make a new axis for dimension ``i`` of a value, never cut."""
        n = self.shape(value)[i]
        return self.still(n if self.facts.static(value, i) else None, reason)

    def give(self, out: ir.Value | None, axes: Sequence[Axis], zero: Sequence[bool]) -> None:
        """Set the axes of an output. Axes that contradict its inferred shape are pinned instead."""
        if out is None:
            return
        state = self.findings
        dims = self.facts.dims(out)
        if dims is None or len(dims) != len(axes):
            for axis in axes:
                self.pin(axis, f"the shape of its output {out.name} is not known")
            return
        checked: list[Axis] = []
        for i, (axis, (first, second)) in enumerate(zip(axes, dims, strict=True)):
            extent = first if first == second else None
            if isinstance(axis, Dynamic) if extent is None else not isinstance(axis, Dynamic) and len(axis) == extent:
                checked.append(axis)
                if isinstance(axis, Dynamic) and axis.static:
                    state.divided[dims[i]] = axis
            else:
                self.pin(axis, f"axis {i} of its output {out.name} has another extent")
                checked.append(self.still(extent, f"axis {i} has no known origin"))
        if self._narrow(out) and not self._zero_points:
            zero = [False] * len(axes)
        if out in state.axes:
            for have, new in zip(state.axes[out], checked, strict=True):
                self.unify(have, new)
            state.zero[out] = [a and b for a, b in zip(state.zero[out], zero, strict=True)]
        else:
            state.axes[out] = checked
            state.zero[out] = list(zero)

    def pick(self, value: ir.Value | None, axis: Axis) -> bool:
        """Tie an axis to the one whose indices some integers are; return whether they are known to be indices."""
        ids = None if value is None else self.findings.picks.get(value)
        if ids is None or isinstance(axis, Dynamic) or len(ids) != len(axis):
            return False
        self.unify(axis, ids)
        self.picked_by_rule = True
        return True

    # -- weights ------------------------------------------------------------------------------------------------

    def weight(self, value: ir.Value | None) -> bool:
        """Note that an operand holds the weights of this node, through whatever constants it is computed from.

        Returns:
            Whether the operand is constant.
        """
        if value is None:
            return False
        sources = list(self._constant_sources(value)) or list(self._stack_of_matrices(value))
        if not sources:
            return False
        largest = max(sources, key=_size)
        self.findings.weights.setdefault(largest, self.node)
        return True

    def _stack_of_matrices(self, value: ir.Value) -> Iterator[ir.Value]:
        """Yield the constant of which an operand picks matrices, as a router picks experts."""
        node = value.producer()
        while node is not None and operator_of(node).view and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        table = node.inputs[0] if node is not None and self._picks_matrices(node) else None
        if table is not None and self.is_source(table) and self.rank(table) > 2:
            yield table

    def _constant_sources(self, value: ir.Value, depth: int = 16) -> Iterator[ir.Value]:
        if self.is_source(value):
            yield value
            return
        node = value.producer()
        if node is None or depth == 0 or operator_of(node).shape_only or operator_of(node).has_body:
            return
        sources: list[ir.Value] = []
        for operand in node.inputs[:1] if self._picks_matrices(node) else node.inputs:
            if operand is not None:
                inner = list(self._constant_sources(operand, depth - 1))
                if not inner:
                    return
                sources.extend(inner)
        yield from sources

    def _picks_matrices(self, node: ir.Node) -> bool:
        """Say whether a node picks whole matrices of a stack, such as the experts that a router has chosen."""
        data, out = node.inputs[0], node.outputs[0]
        if operator_of(node).movement != "pick" or data is None:
            return False
        before, after = self.facts.dims(data), self.facts.dims(out)
        return before is not None and len(before) > 2 and after is not None and before[-2:] == after[-2:]

    def is_source(self, value: ir.Value) -> bool:
        """Say whether a value is an initializer, or a constant filled at run time with a shape known before."""
        return value.is_initializer() or filled_at_run_time(value)

    def fill(self, value: ir.Value | None, zero_point: ir.Value | None, axis: int) -> bool:
        """Say that a quantised constant is zeroed by writing its zero point.

        Returns:
            Whether that can be done.
        """
        if value is None or not value.is_initializer():
            return False
        if zero_point is not None and not zero_point.is_initializer():
            return False
        self.axes(value)
        if value in self.findings.unmasked:
            return False
        known = self.findings.fills.get(value)
        if known is not None and known != Fill(zero_point, axis):
            return False
        self.findings.fills[value] = Fill(zero_point, axis)
        self.findings.zero[value] = [True] * self.rank(value)
        return True

    def pack(self, value: ir.Value, layout: Packed) -> bool:
        """Say that a constant holds numbers in blocks of a few bits, and is zeroed by bytes of zero points.

        Returns:
            Whether nobody said otherwise before.
        """
        self.axes(value)
        known = self.findings.fills.get(value)
        if known is not None:
            other = known.packed
            return other is not None and (other.scales, other.zero_points, other.bits, other.block) == (
                layout.scales, layout.zero_points, layout.bits, layout.block)  # fmt: skip
        self.findings.fills[value] = Fill(layout.zero_points, 0, layout)
        self.findings.zero[value] = [value not in self.findings.unmasked] * self.rank(value)
        return True

    def filled_with(self, value: ir.Value) -> Fill | None:
        """Return how a quantised constant is zeroed, None where it is not."""
        return self.findings.fills.get(value)

    # -- the walk -----------------------------------------------------------------------------------------------

    def walk(self, graph: ir.Graph) -> None:
        """Analyse a subgraph in place."""
        self.findings.walk(self.findings, graph)

    def opaque(self, reason: str) -> None:
        """Pin every axis that the node touches."""
        for value in {v for v in self.node.inputs if v is not None}:
            if self.facts.shape(value) is None:
                continue
            for axis in self.axes(value):
                self.pin(axis, reason)
        for graph in bodies(self.node):
            for inner in nodes_of(graph):
                for touched in (*inner.inputs, *inner.outputs):
                    if touched is not None and self.facts.shape(touched) is not None:
                        self.findings.still(touched, f"{self.name}: {reason}")
        for out in self.node.outputs:
            self.findings.still(out, f"{self.name}: {reason}")


def _size(value: ir.Value) -> int:
    return math.prod(d if isinstance(d, int) else 1 for d in value.shape) if value.shape is not None else 0
