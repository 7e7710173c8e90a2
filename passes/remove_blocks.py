"""Remove whole residual blocks: y = x + f(x) becomes y = x, and f goes (depth pruning).

Cases:
1. `RemoveBlocks`: the Add becomes an Identity of what is left of it; the nodes of f have no reader any more, and
   `Tidy` takes them away with their weights.
2. The same where the Add is fused with the norm behind it: the norm of the trunk takes its place. A norm fused with a
   sum before it that only the block read goes, too: an Add is left.
3. `MaskBlocks`: the last contribution of f is multiplied by zero where it stands. It is the oracle for the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxprune.graph.branches import branches_of, keep_results
from onnxprune.graph.caches import GONE, PAST, are_alike, is_way_out
from onnxprune.graph.edit import Editor
from onnxprune.graph.operators import operator_of
from onnxprune.structure.blocks import ResidualBlock, joined

_SKIP_EPSILON = 1e-12  # where the fused norms of ONNX Runtime say none; LayerNormalization would take 1e-5


class RemoveBlocks(ir.passes.InPlacePass):
    """Replace the Add of each block by an Identity of its trunk, or by nothing where no output is named after it."""

    preserves: Literal["up to recovery"] = "up to recovery"

    def __init__(self, blocks: Sequence[ResidualBlock]) -> None:
        """Take blocks of the model that will be passed in."""
        super().__init__()
        self.blocks = blocks

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        edit = Editor(model)
        let_caches_go(edit, self.blocks)
        for block in _in_each_branch(self.blocks):
            graph, total = block.add.graph, joined(block.add)
            assert graph is not None
            if operator_of(block.add).sum_output is not None:
                edit.take_place(block.add.outputs[0], _norm_of_the_trunk(edit, block))
            if total is not block.add.outputs[0] or operator_of(block.add).sum_output is None:
                _pass_on(edit, block, total)
            graph.remove(block.add, safe=True)
        if any(operator_of(block.add).sum_output is not None for block in self.blocks):
            RemoveUnusedNodesPass()(model)
            _drop_unread_norms(edit, model)
        if any(block.others for block in self.blocks):
            _drop_unread_results(model)
        return ir.passes.PassResult(model, modified=bool(self.blocks))


def _in_each_branch(blocks: Sequence[ResidualBlock]) -> Iterator[ResidualBlock]:
    for block in blocks:
        yield from block.everywhere


def _drop_unread_results(model: ir.Model) -> None:
    """Take away what an If hands out and nobody reads: caches of layers that went."""
    RemoveUnusedNodesPass()(model)
    for node in model.graph:
        if branches_of(node):
            kept = [i for i, out in enumerate(node.outputs) if out.is_graph_output() or out.uses()]
            if len(kept) < len(node.outputs):
                keep_results(node, kept)


def let_caches_go(edit: Editor, blocks: Sequence[ResidualBlock]) -> None:
    """Let the cache of another layer stand in for that of one that goes, so that the outputs are there until the end.

    Where the blocks hold all caches of a kind, these stay, with what computes them.
    """
    going = [node for block in _in_each_branch(blocks) for node in block.nodes if is_way_out(node)]
    staying = [node for node in edit.model.graph if is_way_out(node) and node not in going]
    if not staying:
        return
    for node in [node for node in edit.model.graph if node in going]:
        fitting = (other for other in staying if other.inputs[1:] == node.inputs[1:])
        model_of_it = next((n for n in fitting if are_alike(n.outputs[0], node.outputs[0])), None)
        if model_of_it is not None:
            output = node.outputs[0]
            stand_in = edit.after(node, "Identity", [model_of_it.outputs[0]])
            edit.take_place(output, stand_in, readers=[])
            maker = stand_in.producer()
            assert maker is not None
            maker.metadata_props[GONE] = node.metadata_props[PAST]
            _move_to_end(edit.model.graph, maker)


def _move_to_end(graph: ir.Graph, node: ir.Node) -> None:
    """What it reads may stand behind it; only an output of the graph reads it."""
    graph.remove(node)
    graph.append(node)


def _pass_on(edit: Editor, block: ResidualBlock, total: ir.Value) -> None:
    """Let what is left of a sum take its place."""
    if total.is_graph_output():
        edit.take_place(total, edit.after(block.add, "Identity", [block.trunk]))
    else:
        total.replace_all_uses_with(block.trunk)


def _norm_of_the_trunk(edit: Editor, block: ResidualBlock) -> ir.Value:
    """The norm that a fused node takes, of the trunk alone."""
    node, operator = block.add, operator_of(block.add)
    epsilon = node.attributes.get_float("epsilon", _SKIP_EPSILON)
    affine = node.inputs[2 : operator.biases[-1]]
    return edit.after(node, operator.plain, [block.trunk, *affine], {"axis": -1, "epsilon": epsilon})


def _drop_unread_norms(edit: Editor, model: ir.Model) -> None:
    """Where only the sum of a fused node is read, compute no more than the sum."""
    for node in list(model.graph):
        operator, norm = operator_of(node), node.outputs[0]
        if operator.sum_output is None or norm.uses() or norm.is_graph_output() or joined(node) is norm:
            continue
        total = edit.before(node, "Add", list(node.inputs[:2]))
        place = operator.biases[-1]
        if place < len(node.inputs) and node.inputs[place] is not None:
            total = edit.before(node, "Add", [total, node.inputs[place]])
        edit.take_place(joined(node), total)
        assert isinstance(node.graph, ir.Graph)
        node.graph.remove(node, safe=True)


class MaskBlocks(ir.passes.InPlacePass):
    """Zero what each block contributes; nothing goes."""

    preserves: Literal["up to recovery"] = "up to recovery"

    def __init__(self, blocks: Sequence[ResidualBlock]) -> None:
        """Take blocks of the model that will be passed in."""
        super().__init__()
        self.blocks = blocks

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        edit = Editor(model)
        let_caches_go(edit, self.blocks)
        for block in _in_each_branch(self.blocks):
            value = block.contribution
            dtype = value.dtype or ir.DataType.FLOAT
            zero = edit.constant(ir.tensor(np.zeros((), np.float32), dtype=dtype), f"{block.name}_zero")
            block.add.replace_input_with(block.branch, edit.before(block.add, "Mul", [value, zero]))
            if block.bias is not None:
                bias = edit.before(block.add, "Mul", [block.add.inputs[block.bias], zero])
                block.add.replace_input_with(block.bias, bias)
        return ir.passes.PassResult(model, modified=bool(self.blocks))
