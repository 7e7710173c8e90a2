"""A network with a data-dependent branch and a data-dependent number of steps, in three writings of one computation.

`ControlFlow` is plain Python, exported by torch.jit.script (legacy). `HigherOrder` says the same with torch.cond and
while_loop (dynamo). `hand_built` makes the ONNX graph node by node, with the weights as initializers *inside* the If
branches and the Loop body, which neither exporter does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn


class ControlFlow(nn.Module):
    """Image [batch, 3, h, w], steps [batch, 1] -> logits; the branch and the step count hold for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.wide, self.narrow = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 32, 1)
        self.plain = nn.Conv2d(16, 32, 3, padding=1)
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor, steps: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        if bool(image.mean() > 0):  # noqa: SIM108 (a statement is what scripts to If)
            x = self.narrow(F.relu(self.wide(x)))
        else:
            x = self.plain(x)
        x = F.relu(x).mean((2, 3))
        for _ in range(int(steps.max())):
            x = x + self.down(F.relu(self.up(x)))
        return self.head(x)

    def exportable(self, exporter: str) -> nn.Module:
        """What to hand to that exporter of torch.onnx."""
        return torch.jit.script(self) if exporter == "legacy" else HigherOrder(self)


class HigherOrder(nn.Module):
    def __init__(self, net: ControlFlow) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, steps: Tensor) -> Tensor:
        net = self.net
        x = F.relu(net.stem(image))
        x = torch.cond(image.mean() > 0, lambda x: net.narrow(F.relu(net.wide(x))), lambda x: net.plain(x), (x,))
        x = F.relu(x).mean((2, 3))

        def running(step: Tensor, x: Tensor) -> Tensor:
            return step < steps.max()

        def body(step: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return step + 1, x + net.down(F.relu(net.up(x)))

        while_loop: Any = torch.while_loop  # untyped in PyTorch 2.13
        _, x = while_loop(running, body, (torch.zeros((), dtype=torch.int64), x))
        return net.head(x)


def hand_built(net: ControlFlow, opset: int) -> onnx.ModelProto:
    """`net` as If and Loop nodes whose subgraphs hold their own weights."""
    nodes = [
        helper.make_node("Conv", ["image", "stem.weight", "stem.bias"], ["stem"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["stem"], ["features"]),
        helper.make_node("ReduceMean", ["image"], ["brightness"], keepdims=0),
        helper.make_node("Greater", ["brightness", "zero"], ["bright"]),
        helper.make_node("If", ["bright"], ["branched"], then_branch=_then_branch(net), else_branch=_else_branch(net)),
        helper.make_node("Relu", ["branched"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["start"]),
        helper.make_node("ReduceMax", ["steps"], ["trips"], keepdims=0),
        helper.make_node("Loop", ["trips", "", "start"], ["state"], body=_loop_body(net)),
        helper.make_node("Gemm", ["state", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16]),
        helper.make_tensor_value_info("steps", TensorProto.INT64, ["batch", 1]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])]
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    graph = helper.make_graph(nodes, "control_flow", inputs, outputs, [*_weights(net, "stem", "head"), zero])
    ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def _then_branch(net: ControlFlow) -> onnx.GraphProto:
    nodes = [
        helper.make_node("Conv", ["features", "wide.weight", "wide.bias"], ["wide"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["wide"], ["wide_active"]),
        helper.make_node("Conv", ["wide_active", "narrow.weight", "narrow.bias"], ["narrow"]),
    ]
    output = helper.make_tensor_value_info("narrow", TensorProto.FLOAT, ["batch", 32, 16, 16])
    return helper.make_graph(nodes, "then", [], [output], _weights(net, "wide", "narrow"))


def _else_branch(net: ControlFlow) -> onnx.GraphProto:
    node = helper.make_node("Conv", ["features", "plain.weight", "plain.bias"], ["plain"], pads=[1, 1, 1, 1])
    output = helper.make_tensor_value_info("plain", TensorProto.FLOAT, ["batch", 32, 16, 16])
    return helper.make_graph([node], "else", [], [output], _weights(net, "plain"))


def _loop_body(net: ControlFlow) -> onnx.GraphProto:
    nodes = [
        helper.make_node("Gemm", ["x", "up.weight", "up.bias"], ["up"], transB=1),
        helper.make_node("Relu", ["up"], ["up_active"]),
        helper.make_node("Gemm", ["up_active", "down.weight", "down.bias"], ["down"], transB=1),
        helper.make_node("Add", ["x", "down"], ["next"]),
        helper.make_node("Identity", ["going"], ["still_going"]),
    ]
    inputs = [
        helper.make_tensor_value_info("step", TensorProto.INT64, []),
        helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32]),
    ]
    outputs = [
        helper.make_tensor_value_info("still_going", TensorProto.BOOL, []),
        helper.make_tensor_value_info("next", TensorProto.FLOAT, ["batch", 32]),
    ]
    return helper.make_graph(nodes, "body", inputs, outputs, _weights(net, "up", "down"))


def _weights(net: ControlFlow, *layers: str) -> list[onnx.TensorProto]:
    state = net.state_dict()
    names = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    return [numpy_helper.from_array(state[name].numpy(), name) for name in names]
