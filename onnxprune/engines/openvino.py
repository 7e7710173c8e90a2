"""OpenVINO on a CPU: sparse weights decompression.

Zeros are taken out of the weights when a model is compiled, and put back in the kernel, so that fewer bytes are read
from memory. All rules are in one function of the CPU plugin, `useSparseWeightsDecompression`.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.engines.layer import Engine, Layer, Rule, without_zeros

SIDE = 64
"""Both sides of a weight are multiples of this."""

RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
"""The property that turns it on: layers with at least this share of zeros. By default, 1, it is off."""

PLUGIN = (
    "https://github.com/openvinotoolkit/openvino/blob/master/src/plugins/intel_cpu/src/nodes/fullyconnected.cpp "
    "(useSparseWeightsDecompression)"
)
GUIDE = (
    "https://docs.openvino.ai/2025/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html "
    "(Sparse weights decompression)"
)


def _product(layer: Layer) -> str:
    if not layer.is_product:
        return f"OpenVINO reads zeros of matrix products with weights on the right alone, not of {layer.node.op_type}"
    return ""


def _matrix(layer: Layer) -> str:
    return "" if len(layer.shape) == 2 else f"its weight has {len(layer.shape)} axes, where OpenVINO takes 2"


def _sides(layer: Layer) -> str:
    if any(extent % SIDE for extent in layer.shape):
        return f"its weight is {' x '.join(map(str, layer.shape))}, and both sides have to be multiples of {SIDE}"
    return ""


def _unused(layers: Sequence[Layer]) -> dict[str, str]:
    """Layers without zeros, in float, or with weights that OpenVINO turns, after which they are no constant to it."""
    stored = {
        layer.name: "its weight is stored inputs first, and OpenVINO turns it when it compiles the model"
        for layer in layers
        if layer.axes is not None and layer.axes.output != 0
    }
    floats = {layer.name: "its weights are not int8" for layer in layers if not layer.integers}
    return {**without_zeros(layers), **stored, **floats}


ENGINE = Engine(
    name="openvino",
    called="OpenVINO",
    structure="weights",
    quantize="int8",
    refused={
        "fp16": "OpenVINO reads zeros of int8 weights alone: leave --quantize out",
        "int4": "OpenVINO reads zeros of int8 weights alone: leave --quantize out",
        "int8-dynamic": "OpenVINO reads zeros where activations are int8 as well: take --quantize int8",
    },
    rules=(
        Rule("The layer is a matrix product with constant weights on the right.", GUIDE, _product),
        Rule("Its weight has two axes.", PLUGIN, _matrix),
        Rule(f"Both of its sides are multiples of {SIDE}.", PLUGIN, _sides),
    ),
    zeros_source=PLUGIN,
    unused=_unused,
    advice=f"compile it with {RATE} at {{rate}}, on a processor with AMX",
    settings={"allocation": "uniform"},
    step=SIDE,
    outputs_first=True,
)
"""Zeros lie anywhere. Layers get the same share, since each is held against one rate."""
