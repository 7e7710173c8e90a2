"""Bring a model into the form that analysis reads. The function it computes stays exactly the same.

Cases:
1. ``Constant`` nodes become initializers (also inside subgraphs), under the same names; where bodies side by side
   use one name twice, the second gets a name of its own. An If over a constant becomes the branch that runs.
2. Local functions are inlined.
3. ``Identity`` of a constant goes: the legacy exporter gives constants that layers share to all but one through it.
4. Weights that are computed from constants are computed (`FoldWeights`).
5. A bias, scale or other constant with one real axis that several nodes share, or the first state of several recurrent
   layers, becomes one copy for each use, so that layers which happen to hold equal numbers are not tied together.
   `Tidy` joins copies that stayed equal. So does an Expand of integers: places that all layers look up, written once
   for batch x heads, would tie the heads of all.
6. A run of Reshape, Transpose, ... that only permutes or picks channels (a channel shuffle) becomes one Gather, which
   leaves every channel free to go on its own.
7. Passes that other packages register run after the first two (`preparing`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxprune.graph.edit import Editor, remove_unread
from onnxprune.graph.inference import infer
from onnxprune.graph.operators import operator_of
from onnxprune.graph.shapes import Facts
from onnxprune.graph.tensors import is_constant
from onnxprune.model_io.bodies import graphs_of, nodes_of, subgraphs_of
from onnxprune.model_io.small_constants import FIRST_WITH_FREE_CONSTANTS
from onnxprune.passes.fold_weights import FoldWeights
from onnxprune.passes.lift_constants import LiftConstants
from onnxprune.passes.picked_indices import picked_indices
from onnxprune.passes.preparing import PASSES

COPY_OF = "onnxprune.copy_of"
"""Metadata key of a copied constant: the name of the constant it was copied from."""

WRITTEN_AS = "onnxprune.written_as"
"""Metadata key of a constant that has another name while the model is worked on: the name in the file."""

_LONGEST_RUN = 5


class Normalise(ir.passes.InPlacePass):
    """Lift constants, inline functions, fold weights, untie shared constants, write channel shuffles as Gather.

    Attributes:
        facts: After the call, the shapes of the model's values, where this had to infer them; else None.
    """

    preserves: Literal["exactly"] = "exactly"

    def __init__(self) -> None:
        super().__init__()
        self.facts: Facts | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = bool(model.functions) and InlinePass()(model).modified
        modified |= LiftConstants()(model).modified
        modified |= one_name_each(model)
        modified |= _inline_constant_ifs(model)
        for prepare in PASSES.values():
            modified |= prepare()(model).modified
        modified |= _read_constants_directly(model)
        modified |= FoldWeights()(model).modified
        edit = Editor(model)
        modified |= _untie_constants(edit)
        modified |= _untie_repeats(edit)
        if _has_candidates(model):
            self.facts = infer(model)
            modified |= _shuffles_to_gathers(edit, self.facts)
        return ir.passes.PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """Check that no constant node with a tensor and no function is left."""
        if model.functions:
            raise ir.passes.PostconditionError("local functions are left")


# -- bodies ---------------------------------------------------------------------------------------------------------


def one_name_each(model: ir.Model) -> bool:
    """Give constants of sibling bodies that share a name names of their own, and old models none in bodies at all."""
    modified = False
    edit: Editor | None = None
    seen = set(model.graph.initializers)
    for body in subgraphs_of(model.graph):
        for name, value in list(body.initializers.items()):
            if name in seen:
                edit = edit or Editor(model)
                value.name = edit.fresh(name)
                value.metadata_props[WRITTEN_AS] = name
                modified = True
            seen.add(str(value.name))
            if model.ir_version < FIRST_WITH_FREE_CONSTANTS:
                del body.initializers[str(value.name)]
                model.graph.register_initializer(value)
                modified = True
    return modified


def _inline_constant_ifs(model: ir.Model) -> bool:
    """Let the branch of an If that always runs take the place of the If."""
    constant = [node for node in nodes_of(model.graph) if _has_constant_condition(node)]
    if not constant:
        return False
    edit = Editor(model)
    for node in constant:
        condition = node.inputs[0]
        assert condition is not None and condition.const_value is not None
        name = "then_branch" if condition.const_value.numpy().reshape(-1)[0] else "else_branch"
        edit.inline(node, node.attributes[name].as_graph())
    return True


def _has_constant_condition(node: ir.Node) -> bool:
    return node.op_type == "If" and node.domain == "" and node.inputs[0] is not None and is_constant(node.inputs[0])


# -- shared constants -----------------------------------------------------------------------------------------------


def _read_constants_directly(model: ir.Model) -> bool:
    identities = [node for node in nodes_of(model.graph) if _is_identity_of_constant(node)]
    for node in identities:
        assert node.inputs[0] is not None and node.graph is not None
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        node.graph.remove(node, safe=True)
    return bool(identities)


def _is_identity_of_constant(node: ir.Node) -> bool:
    if node.op_type != "Identity" or node.domain != "":
        return False
    source = node.inputs[0]
    return source is not None and source.is_initializer() and not node.outputs[0].is_graph_output()


def _untie_constants(edit: Editor) -> bool:
    modified = False
    for graph in graphs_of(edit.model):
        for value in list(graph.initializers.values()):
            uses = value.uses()
            if len(uses) < 2 or value.is_graph_output() or value.is_graph_input():
                continue
            if not (_one_real_axis(value) or all(index in operator_of(node).states for node, index in uses)):
                continue
            for number, (node, index) in enumerate(list(uses)[1:], start=1):
                copy = edit.copy(value, f"{value.name}_copy{number}")
                copy.metadata_props[COPY_OF] = value.metadata_props.get(COPY_OF, str(value.name))
                node.replace_input_with(index, copy)
                modified = True
    return modified


def _untie_repeats(edit: Editor) -> bool:
    nodes = nodes_of(edit.model.graph)
    shared = [node for node in nodes if node.op_type == "Expand" and _is_shared_index(node.outputs[0])]
    for node in shared:
        for reader, index in list(node.outputs[0].uses())[1:]:
            copy = edit.before(reader, node.op_type, list(node.inputs))
            maker = copy.producer()
            assert maker is not None
            maker.metadata_props[COPY_OF] = str(node.outputs[0].name)
            copy.type, copy.shape = node.outputs[0].type, node.outputs[0].shape
            reader.replace_input_with(index, copy)
    return bool(shared)


def _is_shared_index(value: ir.Value) -> bool:
    """Whether several nodes of one graph read a value, which holds no floats."""
    readers = [node for node, _ in value.uses()]
    graphs = {node.graph for node in readers}
    if len(set(readers)) < 2 or len(graphs) > 1 or value.is_graph_output():
        return False
    return value.dtype is not None and not value.dtype.is_floating_point()


def _one_real_axis(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype.is_floating_point() and sum(n > 1 for n in tensor.shape.numpy()) == 1


# -- channel shuffles -----------------------------------------------------------------------------------------------


def _has_candidates(model: ir.Model) -> bool:
    return any(
        node.op_type == "Transpose" and _is_run_end(user) for node in nodes_of(model.graph) for user in _users(node)
    )


def _users(node: ir.Node) -> list[ir.Node]:
    return [user for value in node.outputs[:1] for user, _ in value.uses()]


def _is_run_end(node: ir.Node) -> bool:
    return operator_of(node).movement == "reshape" and _comes_from_reshape(node)


def _comes_from_reshape(node: ir.Node) -> bool:
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    if before is None or before.op_type != "Transpose" or before.inputs[0] is None:
        return False
    first = before.inputs[0].producer()
    return first is not None and first.op_type == "Reshape"


def _shuffles_to_gathers(edit: Editor, facts: Facts) -> bool:
    modified = False
    for node in list(nodes_of(edit.model.graph)):
        if node.domain != "" or not _ends_shuffle(node, facts):
            continue
        run = _run(node)
        for start in range(len(run)):
            picked = _as_gather(run[start:], facts)
            if picked is not None:
                _replace(edit, run[start:], *picked, facts)
                modified = True
                break
    return modified


def _ends_shuffle(node: ir.Node, facts: Facts) -> bool:
    """A merging Reshape, or a Gather of one index behind one (x[0] and x[1] of older ShuffleNet exports)."""
    if _is_run_end(node):
        return True
    if node.op_type == "Gather" and node.inputs[0] is not None:
        index, before = facts.data(node.inputs[1]), node.inputs[0].producer()
        return index is not None and index.ndim == 0 and before is not None and _is_run_end(before)
    return False


def _run(end: ir.Node) -> list[ir.Node]:
    """Return the moves that lead to a node, first to last."""
    run = [end]
    while len(run) < _LONGEST_RUN and run[0].inputs[0] is not None:
        before = run[0].inputs[0].producer()
        if before is None or not _moves_channels(before) or before.graph is not end.graph:
            break
        run.insert(0, before)
    return run


def _moves_channels(node: ir.Node) -> bool:
    return operator_of(node).movement in ("reshape", "permute") or node.op_type == "Gather"


def _as_gather(run: list[ir.Node], facts: Facts) -> tuple[int, npt.NDArray[np.int64]] | None:
    """Return (axis, indices) if a run of moves picks indices of one axis and does nothing else, at both settings."""
    axis_and_order: tuple[int, npt.NDArray[np.int64]] | None = None
    source, out = run[0].inputs[0], run[-1].outputs[0]
    if source is None:
        return None
    for probe in (facts.first, facts.second):
        shape, wanted = probe.shapes.get(source), probe.shapes.get(out)
        if shape is None or wanted is None or None in shape or None in wanted or len(shape) != len(wanted):
            return None
        picked = picked_indices([int(n or 0) for n in shape], run, facts, probe.shapes)
        if picked is None or (
            axis_and_order is not None
            and not (axis_and_order[0] == picked[0] and np.array_equal(axis_and_order[1], picked[1]))
        ):
            return None
        axis_and_order = picked
    if axis_and_order is None or np.array_equal(
        axis_and_order[1], np.arange((facts.shape(source) or ())[axis_and_order[0]] or 0)
    ):
        return None
    return axis_and_order if facts.static(source, axis_and_order[0]) else None


def _replace(edit: Editor, run: list[ir.Node], axis: int, indices: npt.NDArray[np.int64], facts: Facts) -> None:
    """Let a Gather take the place of a run; what only the run read goes with it, or the analysis would walk it, too."""
    end, source = run[-1], run[0].inputs[0]
    out = end.outputs[0]
    constant = edit.constant(indices, f"{out.name}_indices")
    new = edit.after(end, "Gather", [source, constant], {"axis": axis}, ending="as_gather")
    facts.learn(constant, indices)
    facts.stand_in(new, out)
    edit.take_place(out, new)
    remove_unread(out)


def renamed_copies(model: ir.Model) -> dict[str, str]:
    """Return the copies that normalising a model left in it, with the names of their sources."""
    return {
        str(v.name): v.metadata_props[COPY_OF]
        for graph in graphs_of(model)
        for v in graph.initializers.values()
        if COPY_OF in v.metadata_props
    }
