"""Remove whole residual blocks: y = x + f(x) becomes y = x, and f goes (depth pruning).

Cases:
1. `RemoveBlocks`: the Add becomes an Identity of what is left of it; the nodes of f have no reader any more, and
   `Tidy` takes them away with their weights.
2. `MaskBlocks`: the last contribution of f is multiplied by zero where it stands. It is the oracle for the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxprune.graph.edit import Editor
from onnxprune.structure.blocks import ResidualBlock


class RemoveBlocks(ir.passes.InPlacePass):
    """Replace the Add of each block by an Identity of its trunk, or by nothing where no output is named after it."""

    preserves: Literal["up to recovery"] = "up to recovery"

    def __init__(self, blocks: Sequence[ResidualBlock]) -> None:
        """Take blocks of the model that will be passed in."""
        super().__init__()
        self.blocks = blocks

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        edit = Editor(model)
        for block in self.blocks:
            graph, old = block.add.graph, block.add.outputs[0]
            assert graph is not None
            if old.is_graph_output():
                edit.take_place(old, edit.after(block.add, "Identity", [block.trunk]))
            else:
                old.replace_all_uses_with(block.trunk)
            graph.remove(block.add, safe=True)
        return ir.passes.PassResult(model, modified=bool(self.blocks))


class MaskBlocks(ir.passes.InPlacePass):
    """Zero what each block contributes; nothing goes."""

    preserves: Literal["up to recovery"] = "up to recovery"

    def __init__(self, blocks: Sequence[ResidualBlock]) -> None:
        """Take blocks of the model that will be passed in."""
        super().__init__()
        self.blocks = blocks

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        edit = Editor(model)
        for block in self.blocks:
            value = block.contribution
            dtype = value.dtype or ir.DataType.FLOAT
            zero = edit.constant(ir.tensor(np.zeros((), np.float32), dtype=dtype), f"{block.name}_zero")
            block.add.replace_input_with(block.branch, edit.before(block.add, "Mul", [value, zero]))
        return ir.passes.PassResult(model, modified=bool(self.blocks))
