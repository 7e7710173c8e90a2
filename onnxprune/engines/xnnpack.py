"""XNNPACK on ARM and in WebAssembly: single zeros in chains of 1x1 convolutions, which it then runs in NCHW.

What a chain may hold says `xnn_check_nchw_compatibility`, and when it is used `xnn_subgraph_rewrite_for_nchw`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.engines.chains import chains
from onnxprune.engines.layer import Engine, Layer, Rule, without_zeros

SHARE = 2 / 3
"""More than this share of the weights of the 1x1 convolutions of a chain is zero."""

SOURCE = "https://github.com/google/XNNPACK/blob/master/src/subgraph.c"
CHECK, REWRITE = f"{SOURCE} (xnn_check_nchw_compatibility)", f"{SOURCE} (xnn_subgraph_rewrite_for_nchw)"
DELEGATE = (
    "https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/delegates/xnnpack/README.md "
    "(Sparse inference)"
)


def _pointwise(layer: Layer) -> str:
    if not layer.is_convolution:
        return f"XNNPACK reads zeros of 1x1 convolutions alone, not of {layer.node.op_type}"
    if len(layer.shape) != 4 or layer.shape[2:] != (1, 1):
        kernel = "x".join(map(str, layer.shape[2:]))
        return f"XNNPACK reads zeros of 1x1 convolutions alone, and its kernel is {kernel}"
    return ""


def _plain(layer: Layer) -> str:
    node = layer.node
    for name, usual in (("strides", 1), ("dilations", 1), ("pads", 0)):
        if any(number != usual for number in node.attributes.get_ints(name, ())):
            return f"its {name} are {list(node.attributes.get_ints(name, ()))}, where XNNPACK takes {usual} alone"
    return f"it has {layer.groups} groups, where XNNPACK takes 1" if layer.groups > 1 else ""


def _survey(graph: ir.Graph) -> Mapping[ir.Node, str]:
    return {
        node: f"XNNPACK has no sparse kernels for its part of the graph: {chain.obstacle}"
        for chain in chains(graph)
        if chain.obstacle
        for node in chain.nodes
    }


def _unused(layers: Sequence[Layer]) -> dict[str, str]:
    """Layers of chains with too few zeros, and layers that the file holds as integers."""
    reasons = {layer.name: "its weights are integers, where XNNPACK takes floats" for layer in layers if layer.integers}
    graphs = {id(layer.node.graph): layer.node.graph for layer in layers}
    zeros = {layer.name: int(np.count_nonzero(layer.numbers() == 0)) for layer in layers}
    for graph in graphs.values():
        for chain in chains(graph) if isinstance(graph, ir.Graph) else ():
            members = [layer for layer in layers if layer.node in chain.nodes]
            count, total = (sum(of) for of in ([zeros[m.name] for m in members], [m.size for m in members]))
            if 3 * count <= 2 * total:
                reasons |= {m.name: f"{count / total:.1%} of its chain is zero, not more than 2/3" for m in members}
    return {**without_zeros(layers), **reasons}


ENGINE = Engine(
    name="xnnpack",
    called="XNNPACK",
    structure="weights",
    quantize="no",
    refused=dict.fromkeys(
        ("int8", "int8-dynamic", "int4"), "XNNPACK reads zeros of float weights alone: leave --quantize out"
    ),
    rules=(
        Rule("The layer is a 1x1 convolution.", DELEGATE, _pointwise),
        Rule("It has no strides, dilations, padding or groups.", CHECK, _plain),
    ),
    zeros_source=REWRITE,
    unused=_unused,
    advice="convert it (to TensorFlow Lite with sparse weights, or for ExecuTorch) and run it on ARM or in WebAssembly "
    "with sparse inference; ONNX Runtime's own XNNPACK provider does not use zeros",
    beyond=SHARE,
    survey=_survey,
)
"""A chain begins with a 3x3 convolution of stride 2 over three channels and ends with a mean over each channel."""
