"""Branches of an If as merged decoders have them: one for the first tokens, one that reads the caches.

Both read the same mask, which covers past and new tokens in one and new tokens alone in the other. So no setting of
the free dimensions fits both, and the branch that reads no cache is looked at as it runs: without a past.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from onnxprune.graph.caches import behind_link, cache_lengths
from onnxprune.graph.dims import graph_inputs

Shape = tuple[int | None, ...]


def shapes_without_past(model: ir.Model, branch: ir.Graph, shapes: Mapping[ir.Value, Shape]) -> dict[ir.Value, Shape]:
    """Return the shapes of inputs that are longer by the past than a branch sees them; empty where it reads a cache.

    Args:
        model: The model.
        branch: A branch of an If of its main graph.
        shapes: Of its inputs, at one setting of the free dimensions.
    """
    lengths = cache_lengths(model)
    inside = set(branch.all_nodes())
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


def result_outside(model: ir.Model, value: ir.Value) -> ir.Value:
    """Return what hands a value out of the branches that it is a result of; the value itself where it is in none."""
    for node in model.graph:
        for attribute in node.attributes.values() if node.op_type == "If" else ():
            if attribute.type == ir.AttributeType.GRAPH:
                for result, out in zip(attribute.as_graph().outputs, node.outputs, strict=True):
                    if result is value:
                        return out
    return value
