"""Leave no traces: join copies of constants that stayed equal, drop what nobody reads.

Cases:
1. Copies that `Normalise` made of one constant and that still hold the same content become one again; so do those of a
   node whose inputs are still the same.
2. Nodes and initializers that nothing reads go.
3. Constants of bodies that `Normalise` told apart by name get their names back.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxprune.model_io.bodies import graphs_of, subgraphs_of
from onnxprune.passes.normalise import COPY_OF, WRITTEN_AS


class Tidy(ir.passes.InPlacePass):
    """Join equal copies, remove unused nodes and constants."""

    preserves: Literal["exactly"] = "exactly"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for graph in graphs_of(model):
            modified |= _join_copies(graph)
            modified |= _join_repeats(graph)
        modified |= RemoveUnusedNodesPass()(model).modified
        for body in subgraphs_of(model.graph):
            for value in list(body.initializers.values()):
                if WRITTEN_AS in value.metadata_props:
                    value.name = value.metadata_props.pop(WRITTEN_AS)
                    modified = True
        return ir.passes.PassResult(model, modified=modified)


def _join_copies(graph: ir.Graph) -> bool:
    families: dict[str, list[ir.Value]] = defaultdict(list)
    for value in graph.initializers.values():
        families[value.metadata_props.get(COPY_OF, str(value.name))].append(value)
    modified = False
    for members in families.values():
        if len(members) < 2:
            continue
        kept: dict[tuple[bytes, tuple[int, ...]], ir.Value] = {}
        for value in members:
            assert value.const_value is not None
            content = (value.const_value.tobytes(), tuple(value.const_value.shape.numpy()))
            first = kept.setdefault(content, value)
            if first is not value:
                value.replace_all_uses_with(first)
                del graph.initializers[str(value.name)]
                modified = True
    return modified


def _join_repeats(graph: ir.Graph) -> bool:
    made: dict[tuple[ir.Value | None, ...], ir.Value] = {}
    modified = False
    for node in list(graph):
        if node.op_type != "Expand":
            continue
        first = made.setdefault(tuple(node.inputs), node.outputs[0])
        if node.metadata_props.pop(COPY_OF, None) is not None and first is not node.outputs[0]:
            node.outputs[0].replace_all_uses_with(first)
            graph.remove(node, safe=True)
            modified = True
    return modified
