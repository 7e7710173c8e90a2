"""Dropout of a model that is only run does nothing: its nodes go before the model is analysed."""

from typing import Literal

import onnx_ir as ir

from onnxprune.passes.preparing import preparing


@preparing("drop-dropout")
class DropDropout(ir.passes.InPlacePass):
    """Let what reads a Dropout's output read its input, where nothing asks for its mask or for training."""

    preserves: Literal["exactly"] = "exactly"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Change the model in place."""
        dropouts = [node for node in model.graph if node.op_type == "Dropout" and len(node.inputs) < 3]
        for node in dropouts:
            source, result = node.inputs[0], node.outputs[0]
            if source is not None and not result.is_graph_output() and not any(o.uses() for o in node.outputs[1:]):
                result.replace_all_uses_with(source)
                model.graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=bool(dropouts))
