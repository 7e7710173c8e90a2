"""The only way to edit a graph: new constants, new nodes, replaced values, under names that no scope uses.

    edit = Editor(model)
    bias = edit.constant(np.zeros(8, np.float32), "bias")        # an initializer of the outermost graph
    total = edit.after(node, "Add", [node.outputs[0], bias])     # a node behind another, in its graph
    edit.take_place(node.outputs[0], total)                      # who read the one reads the other, outputs too

ONNX lets a body see the names of the graphs around it, so a new name must be free in all of them: inputs, constants,
outputs of nodes, and names of nodes, in every body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model_io.bodies import graphs_of, subgraphs_of


class Editor:
    """Edits one model. It reads every name in the model once a fresh one is asked for, so make one for many edits."""

    def __init__(self, model: ir.Model) -> None:
        """Take a model whose names only this editor changes."""
        self.model = model
        self._names: set[str] | None = None
        self._last: dict[str, int] = {}  # by stem, so that many names of one stem are found without counting anew
        self._shared: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}

    def fresh(self, stem: str) -> str:
        """Return a name that nothing in the model has: the stem, or the stem with a number."""
        if self._names is None:
            self._names = names_in(self.model)
        name = stem
        while name in self._names:
            self._last[stem] = self._last.get(stem, 0) + 1
            name = f"{stem}_{self._last[stem]}"
        self._names.add(name)
        return name

    # -- constants ----------------------------------------------------------------------------------------------

    def constant(self, content: npt.NDArray[np.generic] | ir.TensorProtocol, stem: str) -> ir.Value:
        """Add an initializer to the outermost graph, which every body can read.

        Args:
            content: An array, or a tensor of any type.
            stem: What its name begins with.
        """
        return self._register(self.model.graph, content, self.fresh(stem))

    def shared_constant(self, array: npt.NDArray[np.generic], stem: str) -> ir.Value:
        """Return a constant with this content: one that this editor has made before, or a new one."""
        array = np.asarray(array, order="C")  # not ascontiguousarray, which gives a single number an axis
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._shared:
            self._shared[key] = self.constant(array, stem)
        return self._shared[key]

    def copy(self, value: ir.Value, stem: str) -> ir.Value:
        """Add another initializer with the content and the metadata of one, to the same graph."""
        assert value.graph is not None
        copy = ir.Value(name=self.fresh(stem), shape=value.shape, type=value.type, const_value=value.const_value)
        copy.metadata_props.update(value.metadata_props)
        _graph(value.graph).register_initializer(copy)
        return copy

    def computed(self, value: ir.Value, content: npt.NDArray[np.generic]) -> ir.Value:
        """Let a constant with this content take the place and the name of a value that a node computes."""
        name = str(value.name)
        value.name = self.fresh(f"{name}_computed")
        constant = self._register(self.model.graph, content, name)
        value.replace_all_uses_with(constant, replace_graph_outputs=True)
        return constant

    @staticmethod
    def _register(graph: ir.Graph, content: npt.NDArray[np.generic] | ir.TensorProtocol, name: str) -> ir.Value:
        tensor = ir.Tensor(np.asarray(content, order="C"), name=name) if isinstance(content, np.ndarray) else content
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        graph.register_initializer(value)
        return value

    # -- nodes --------------------------------------------------------------------------------------------------

    def before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """Insert a node of one output before another, in the graph of that one; return the output."""
        new = self._node(node, op_type, inputs, attributes)
        _graph(node.graph).insert_before(node, new)
        return new.outputs[0]

    def after(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        ending: str | None = None,
    ) -> ir.Value:
        """Insert a node of one output behind another, in the graph of that one; return the output.

        Names end in the operator's, or in `ending`.
        """
        new = self._node(node, op_type, inputs, attributes, ending)
        _graph(node.graph).insert_after(node, new)
        return new.outputs[0]

    def _node(
        self,
        near: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None,
        ending: str | None = None,
    ) -> ir.Node:
        node = ir.node(op_type, list(inputs), attributes=dict(attributes or {}))
        place = near.outputs[0].name
        node.name = self.fresh(f"{near.name or place}_{ending or op_type}")
        node.outputs[0].name = self.fresh(f"{place}_{ending or op_type}")
        return node

    # -- values -------------------------------------------------------------------------------------------------

    def take_place(self, old: ir.Value, new: ir.Value, *, readers: Sequence[tuple[ir.Node, int]] | None = None) -> None:
        """Let a value take the place of another: who read the old one reads the new one, and the name goes with it.

        Args:
            old: The value that is read until now. It keeps its producer, and gets a fresh name.
            new: The value that is read from now on; it gets type and shape of the old one where it has none.
            readers: The uses that change, for a new value that is computed from the old one; by default all but those
                of the new value's own node.
        """
        if readers is None:
            readers = [(node, index) for node, index in old.uses() if node is not new.producer()]
        new.type, new.shape = new.type or old.type, new.shape or old.shape
        graph = old.graph
        if graph is not None:
            for index, output in enumerate(graph.outputs):
                if output is old:
                    graph.outputs[index] = new
        for node, index in readers:
            node.replace_input_with(index, new)
        name, old.name = old.name, self.fresh(f"{old.name}_before")
        new.name = name

    def inline(self, node: ir.Node, body: ir.Graph) -> None:
        """Let the nodes of a body without inputs, such as a branch of an If, take the place of the node that holds it.

        Names of the body that are used elsewhere, as those of a sibling may be, become fresh ones.
        """
        graph, results = _graph(node.graph), list(body.outputs)
        elsewhere = names_in(self.model, without=body)
        body.outputs.clear()
        for value in list(body.initializers.values()):
            del body.initializers[str(value.name)]
            self._rename(value, elsewhere)
            graph.register_initializer(value)
        inner = list(body)
        body.remove(inner)
        for moved in inner:
            self._rename(moved, elsewhere)
            for output in moved.outputs:
                self._rename(output, elsewhere)
        graph.insert_before(node, inner)
        for old, new in zip(node.outputs, results, strict=True):
            if new.producer() not in inner and old.is_graph_output():  # a value from outside keeps its name
                new = self.before(node, "Identity", [new])
            if new.producer() in inner or old.is_graph_output():
                self.take_place(old, new)
            else:
                old.replace_all_uses_with(new)
        graph.remove(node, safe=True)

    def _rename(self, named: ir.Value | ir.Node, taken: set[str]) -> None:
        if named.name in taken:
            named.name = self.fresh(str(named.name))


def remove_unread(value: ir.Value) -> None:
    """Remove the node that makes a value, and those that only it reads, as far as nothing uses them."""
    waiting: list[ir.Value | None] = [value]
    while waiting:
        last = waiting.pop()
        node = None if last is None else last.producer()
        if node is None or node.graph is None or any(out.is_graph_output() or out.uses() for out in node.outputs):
            continue
        waiting += node.inputs
        node.graph.remove(node, safe=True)


def names_in(model: ir.Model, *, without: ir.Graph | None = None) -> set[str]:
    """Return every name that a model uses, in all scopes (but one body): of values, and of nodes."""
    names: set[str] = set()
    skipped = set() if without is None else {without, *subgraphs_of(without)}
    for graph in graphs_of(model):
        if graph in skipped:
            continue
        names.update(str(value.name) for value in (*graph.inputs, *graph.initializers.values()))
        for node in graph:
            names.add(str(node.name))
            names.update(str(output.name) for output in node.outputs)
    return names


def _graph(graph: ir.Graph | ir.Function | None) -> ir.Graph:
    assert isinstance(graph, ir.Graph)
    return graph
