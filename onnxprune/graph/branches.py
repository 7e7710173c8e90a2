"""Branches of an If as merged decoders have them: one for the first tokens, one that reads the caches.

Both read the same mask, which covers past and new tokens in one and new tokens alone in the other. So no setting of
the free dimensions fits both, and the branch that reads no cache is looked at as it runs: without a past.

What looks at the values between the layers sees the nodes of the main graph alone. For it, one branch is put there in
the place of its If: ``with_branch_inlined(model, name)``. Weights that both branches read keep their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.caches import behind_link, cache_lengths
from onnxprune.graph.dims import graph_inputs
from onnxprune.model_io.bodies import nodes_of

Shape = tuple[int | None, ...]

BRANCHES = ("then_branch", "else_branch")
"""The names of the branches of an If."""


def shapes_without_past(model: ir.Model, branch: ir.Graph, shapes: Mapping[ir.Value, Shape]) -> dict[ir.Value, Shape]:
    """Return the shapes of inputs that are longer by the past than a branch sees them; empty where it reads a cache.

    Args:
        model: The model.
        branch: A branch of an If of its main graph.
        shapes: Of its inputs, at one setting of the free dimensions.
    """
    lengths = cache_lengths(model)
    inside = set(nodes_of(branch))
    if any(node in inside for value in lengths for node, _ in behind_link(value).uses()):
        return {}
    pasts = {shapes[value][axis] for value, axis in lengths.items() if value in shapes}
    free = list(_free_rows(model, shapes))
    new = {n for _, _, n in free}
    shorter: dict[ir.Value, Shape] = {}
    for value, axis, n in free:
        without = [n - past for past in pasts if past is not None and n - past in new]
        if len(pasts) == 1 and without:
            shape = shorter.get(value, shapes[value])
            shorter[value] = (*shape[:axis], without[0], *shape[axis + 1 :])
    return shorter


def _free_rows(model: ir.Model, shapes: Mapping[ir.Value, Shape]) -> Iterator[tuple[ir.Value, int, int]]:
    """Yield the free axes of inputs of two axes, with their extents: token ids, masks, positions."""
    for value in graph_inputs(model):
        dims = value.shape if value.shape is not None and len(value.shape) == 2 else ()
        for axis, (dim, n) in enumerate(zip(dims, shapes.get(value, ()), strict=False)):
            if n is not None and not isinstance(dim, int):
                yield value, axis, n


def branches_of(node: ir.Node) -> list[ir.Graph]:
    """Return the branches of an If; empty for other nodes."""
    if node.op_type != "If" or node.domain:
        return []
    return [node.attributes[name].as_graph() for name in BRANCHES]


def keep_results(choice: ir.Node, kept: Sequence[int]) -> None:
    """Leave an If no results but some, in place; nothing may read the others.

    Args:
        choice: The If.
        kept: Places of the results that stay, in order.
    """
    for new, old in enumerate(kept):
        if new != old:
            one, other = choice.outputs[new], choice.outputs[old]
            name, one.type, one.shape = other.name, other.type, other.shape
            other.replace_all_uses_with(one, replace_graph_outputs=True)
            other.name, one.name = None, name
    choice.resize_outputs(len(kept))
    for branch in branches_of(choice):
        left = [branch.outputs[place] for place in kept]
        branch.outputs.clear()
        branch.outputs.extend(left)


def result_outside(model: ir.Model, value: ir.Value) -> ir.Value:
    """Return what hands a value out of the branches that it is a result of; the value itself where it is in none."""
    for node in model.graph:
        for attribute in node.attributes.values() if node.op_type == "If" else ():
            if attribute.type == ir.AttributeType.GRAPH:
                for result, out in zip(attribute.as_graph().outputs, node.outputs, strict=True):
                    if result is value:
                        return out
    return value


def taken_branch(model: ir.Model, inputs: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """Return the name of the branch that inputs take: of the one If whose condition is an input of the graph.

    None where there is no such If, or another.
    """
    choices = [node for node in model.graph if node.op_type == "If" and node.domain == ""]
    condition = choices[0].inputs[0] if len(choices) == 1 else None
    if condition is None or condition.name not in inputs or not condition.is_graph_input():
        return None
    told = np.asarray(inputs[str(condition.name)], bool)
    if told.all():
        return "then_branch"
    return None if told.any() else "else_branch"


def with_branch_inlined(model: ir.Model, name: str) -> ir.Model:
    """Return a copy of a model with the nodes and constants of one branch of its If in the place of it."""
    inlined = model.clone()
    node = next(node for node in inlined.graph if node.op_type == "If" and node.domain == "")
    branch, results = node.attributes[name].as_graph(), list(node.outputs)
    for key, value in list(branch.initializers.items()):
        del branch.initializers[key]
        inlined.graph.register_initializer(value)
    ends = list(branch.outputs)
    branch.outputs.clear()
    for inner in list(branch):
        branch.remove(inner)
        inlined.graph.insert_before(node, inner)
    for result, end in zip(results, ends, strict=True):
        result.replace_all_uses_with(end, replace_graph_outputs=True)
        result.name, end.name = f"{result.name}_of_the_if", result.name
    for attribute in node.attributes.values():  # the other branch reads nothing any more
        for inner in nodes_of(attribute.as_graph()) if attribute.type == ir.AttributeType.GRAPH else ():
            for place in range(len(inner.inputs)):
                inner.replace_input_with(place, None)
    inlined.graph.remove(node, safe=True)
    return inlined


def take_numbers(model: ir.Model, inlined: ir.Model, name: str) -> None:
    """Give the constants of a model, in place, the numbers that they have where branch `name` was inlined.

    Those of the main graph, which other branches read too, and those of the branch itself.
    """
    node = next(node for node in model.graph if node.op_type == "If" and node.domain == "")
    for graph in (model.graph, node.attributes[name].as_graph()):
        for key, value in graph.initializers.items():
            other = inlined.graph.initializers.get(key)
            if value.const_value is not None and other is not None and other.const_value is not None:
                value.const_value = other.const_value
