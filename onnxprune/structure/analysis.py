"""One walk over a model that gives every axis its terms: ``analyse(model) -> Structure``.

Every node's rule ties the axes of its operands together (see `rules`). Unification is global and order-free, so one
walk is enough, subgraphs included: their values live in the same store as the outer graph's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model_io.bodies import bodies
from onnxprune.structure import rules
from onnxprune.structure.axes import Axis, Dynamic, parts
from onnxprune.structure.groups import KIND_BITS
from onnxprune.structure.shapes import Facts, Shape, infer
from onnxprune.structure.structure import Fill, Structure, filled_at_run_time
from onnxprune.structure.terms import Ids, Terms

# Constant operands that must not be zeroed to show that a unit is gone: dividing by them, or scaling to integers.
_NEVER_ZEROED = {
    ("Div", 1), ("Log", 0), ("Reciprocal", 0), ("Pow", 0), ("Mod", 1), ("QuantizeLinear", 1), ("DequantizeLinear", 1),
    ("QLinearConv", 1), ("QLinearConv", 4), ("QLinearConv", 6), ("QLinearMatMul", 1), ("QLinearMatMul", 4),
    ("QLinearMatMul", 6), ("DynamicQuantizeLSTM", 8), ("QGemm", 1), ("QGemm", 4),
}  # fmt: skip

# Narrow integers are taken for quantised: "zero" means their zero point. Besides the rules that know zero points, only
# operators that move values may say so of them.
_NARROW = {
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT4, ir.DataType.UINT4,
    ir.DataType.INT2, ir.DataType.UINT2,
}  # fmt: skip
_KEEPS_ZERO_POINT = {
    "Identity", "Transpose", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "DepthToSpace", "SpaceToDepth", "Concat",
    "Split", "Slice", "Gather", "MaxPool", "Expand", "Tile", "If", "Loop", "Scan",
}  # fmt: skip


class RuleMismatch(Exception):
    """A rule met a node that it cannot describe; the node is pinned with this text as the reason."""


def analyse(model: ir.Model, facts: Facts | None = None) -> Structure:
    """Find which units of a model live and die together.

    Args:
        model: A normalised model (constants lifted to initializers, functions inlined). It is not changed.
        facts: Shapes of its values, inferred when left out.

    Returns:
        The axes of every value, with all that `Structure` derives from them.
    """
    return _Analysis(model, facts or infer(model)).run()


class _Analysis:
    """State of one walk."""

    def __init__(self, model: ir.Model, facts: Facts) -> None:
        self.model = model
        self.facts = facts
        self.terms = Terms()
        self.axes: dict[ir.Value, list[Axis]] = {}
        self.zero: dict[ir.Value, list[bool]] = {}
        self.fills: dict[ir.Value, Fill] = {}
        self.weights: dict[ir.Value, ir.Node] = {}
        self.mixed: dict[ir.Node, list[tuple[int, int]]] = {}
        self.unruled: dict[ir.Node, str] = {}  # by node: the body of a loop may be walked twice
        self.unmasked = {
            v
            for node in model.graph.all_nodes()
            for i, v in enumerate(node.inputs)
            if v is not None and (node.op_type, i) in _NEVER_ZEROED
        }

    def run(self) -> Structure:
        for value in self.model.graph.inputs:
            if not value.is_initializer():
                self._still(value, f"graph input {value.name}")
        for value in self.model.graph.outputs:
            self._still(value, f"graph output {value.name}")
        self.walk(self.model.graph)
        self._no_axis_empties()
        return Structure(
            model=self.model,
            facts=self.facts,
            terms=self.terms,
            axes=self.axes,
            zero=self.zero,
            fills=self.fills,
            weights=self.weights,
            mixed=self.mixed,
            unmasked=self.unmasked,
            unruled=dict(Counter(self.unruled.values())),
        )

    def walk(self, graph: ir.Graph) -> None:
        """Apply the rule of every node of a graph, in order."""
        for node in graph:
            View(self, node).apply()

    def _still(self, value: ir.Value, reason: str) -> None:
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

    def _no_axis_empties(self) -> None:
        """Pin atoms that are present at every index of an axis."""
        seen: set[int] = set()
        for value, axes in self.axes.items():
            for ids in (i for axis in axes for i in parts(axis)):
                if id(ids) in seen or not len(ids):
                    continue
                seen.add(id(ids))
                if len(ids) > 1 and not self.terms.bound[self.terms.find(ids)].any():
                    roots = self.terms.find(ids)
                    everywhere = roots[:1] if (roots == roots[0]).all() else roots[:0]
                else:
                    _, atoms = self.terms.members(ids)
                    found, counts = np.unique(atoms, return_counts=True)
                    everywhere = found[counts == len(ids)]
                if len(everywhere):
                    self.terms.pin(everywhere, f"it is all of an axis of {value.name}")


class View:
    """What a rule sees of one node, and what it may say.

    Axis indices may be negative. Zero flags say whether the removed indices of an axis hold exactly zero when the
    weights of the removed unit are zeroed: only then may they be summed over without changing anything.
    """

    def __init__(self, analysis: _Analysis, node: ir.Node) -> None:
        self._analysis = analysis
        self.node = node
        self.terms = analysis.terms
        self.facts = analysis.facts
        self.opset = analysis.model.opset_imports.get(node.domain, 1)
        self._zero_points = node.op_type in _KEEPS_ZERO_POINT or rules.knows_zero_points(
            rules.key(node.domain, node.op_type)
        )

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
        found = self.node.attributes.get_ints(name)
        return None if found is None else [int(i) for i in found]

    def numbers(self, i: int, attribute: str) -> list[int] | None:
        """Return integers that are an attribute in old opsets and an input in new ones; None where not known."""
        if attribute in self.node.attributes:
            return self.ints_attr(attribute)
        data = self.data(i)
        return None if data is None else [int(d) for d in np.atleast_1d(data)]

    # -- axes ---------------------------------------------------------------------------------------------------

    def axes(self, value: ir.Value) -> list[Axis]:
        """Return the axes of an operand; an initializer gets fresh atoms when it is first met."""
        state = self._analysis
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
                state._still(value, f"{self.name}: nothing is known about its input {value.name}")
        if value not in state.axes:
            raise RuleMismatch(f"the shape of {value.name} is not known")
        return state.axes[value]

    def axis(self, value: ir.Value, i: int) -> Axis:
        """Return one axis of an operand."""
        return self.axes(value)[i]

    def zero(self, value: ir.Value) -> list[bool]:
        """Return the zero flags of an operand's axes."""
        self.axes(value)
        flags = self._analysis.zero[value]
        return flags if self._zero_points or not self._narrow(value) else [False] * len(flags)

    def _narrow(self, value: ir.Value) -> bool:
        return ir.DataType(self.facts.dtype(value)) in _NARROW

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
        self._analysis.mixed.setdefault(self.node, []).append((operand, i))

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
        state = self._analysis
        dims = self.facts.dims(out)
        if dims is None or len(dims) != len(axes):
            for axis in axes:
                self.pin(axis, f"the shape of its output {out.name} is not known")
            return
        checked: list[Axis] = []
        for i, axis in enumerate(axes):
            extent = dims[i][0] if self.facts.static(out, i) else None
            if isinstance(axis, Dynamic) if extent is None else not isinstance(axis, Dynamic) and len(axis) == extent:
                checked.append(axis)
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

    # -- weights ------------------------------------------------------------------------------------------------

    def weight(self, value: ir.Value | None) -> bool:
        """Note that an operand holds the weights of this node, through whatever constants it is computed from.

        Returns:
            Whether the operand is constant.
        """
        if value is None:
            return False
        sources = list(self._constant_sources(value))
        if not sources:
            return False
        largest = max(sources, key=_size)
        self._analysis.weights.setdefault(largest, self.node)
        return True

    def _constant_sources(self, value: ir.Value, depth: int = 16) -> Iterator[ir.Value]:
        if self.is_source(value):
            yield value
            return
        node = value.producer()
        if node is None or depth == 0 or node.op_type in ("Shape", "Size", "If", "Loop", "Scan"):
            return
        found: list[ir.Value] = []
        for operand in node.inputs:
            if operand is not None:
                inner = list(self._constant_sources(operand, depth - 1))
                if not inner:
                    return
                found.extend(inner)
        yield from found

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
        if value in self._analysis.unmasked:
            return False
        known = self._analysis.fills.get(value)
        if known is not None and known != Fill(zero_point, axis):
            return False
        self._analysis.fills[value] = Fill(zero_point, axis)
        self._analysis.zero[value] = [True] * self.rank(value)
        return True

    def filled_with(self, value: ir.Value) -> Fill | None:
        """Return how a quantised constant is zeroed, None where it is not."""
        return self._analysis.fills.get(value)

    # -- the walk -----------------------------------------------------------------------------------------------

    def walk(self, graph: ir.Graph) -> None:
        """Analyse a subgraph in place."""
        self._analysis.walk(graph)

    def apply(self) -> None:
        """Run the node's rule; what it cannot describe is pinned, with the reason."""
        name = rules.key(self.node.domain, self.node.op_type)
        function = rules.find_rule(name)
        if function is None:
            reason = rules.REASONS.get(name)
            if reason is None:
                self._analysis.unruled[self.node] = name
                reason = "there is no rule for this operator"
            self.opaque(reason)
            return
        try:
            function(self)
        except RuleMismatch as error:
            self.opaque(str(error))
            if function.__module__.endswith((".contraction", ".recurrent")):
                for value in self.node.inputs[1:3]:  # its weights count, though nothing of them can go
                    if value is not None and len(self.facts.shape(value) or ()) > 1:
                        self.weight(value)
        except Exception as error:  # a form of the operator that its rule does not foresee: pinning is always sound
            self._analysis.unruled[self.node] = f"{name} (its rule failed)"
            self.opaque(f"its rule failed on it ({type(error).__name__}: {error})")

    def opaque(self, reason: str) -> None:
        """Pin every axis that the node touches."""
        for value in {v for v in self.node.inputs if v is not None}:
            if self.facts.shape(value) is None:
                continue
            for axis in self.axes(value):
                self.pin(axis, reason)
        for graph in bodies(self.node):
            for inner in graph.all_nodes():
                for touched in (*inner.inputs, *inner.outputs):
                    if touched is not None and self.facts.shape(touched) is not None:
                        self._analysis._still(touched, f"{self.name}: {reason}")
        for out in self.node.outputs:
            self._analysis._still(out, f"{self.name}: {reason}")


def _size(value: ir.Value) -> int:
    return math.prod(d if isinstance(d, int) else 1 for d in value.shape) if value.shape is not None else 0
