"""TensorRT on an NVIDIA GPU (Ampere and later): 2:4 along the input channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.engines.layer import Engine, Layer, Rule

OF, MOST = 4, 2
"""Of so many input channels in a row at most so many weights are not zero."""

GUIDE = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/io-formats-sparsity.html "
    "(Structured Sparsity)"
)
PRODUCTS = "https://github.com/NVIDIA/TensorRT/issues/2169 (layers eligible: Conv, MatMul and Gemm)"
GROUPS = "https://github.com/NVIDIA/TensorRT/issues/2169 (ResNeXt: no Conv with groups is among the eligible)"
SYMMETRIC = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html"
BIASES = "https://github.com/microsoft/onnxruntime/issues/14229 (TensorRT takes no int32 biases)"


def _kind(layer: Layer) -> str:
    if layer.is_convolution or layer.is_product:
        return ""
    return (
        f"TensorRT has sparse kernels for convolutions and matrix products with weights on the right, not for "
        f"{layer.node.op_type}"
    )


def _plain_axes(layer: Layer) -> str:
    if layer.is_product and len(layer.shape) != 2:
        return f"its weight has {len(layer.shape)} axes, where TensorRT's sparse products take 2"
    return "" if layer.axes is not None else "its weight has no axis of input channels"


def _ungrouped(layer: Layer) -> str:
    groups = layer.groups
    return f"it has {groups} groups, for which TensorRT has no sparse kernels" if groups > 1 else ""


def _fours(layer: Layer) -> str:
    axes = layer.axes
    channels = 0 if axes is None else axes.summed(layer.shape)
    return f"it has {channels} input channels, no multiple of {OF}" if channels % OF else ""


def _unused(layers: Sequence[Layer]) -> dict[str, str]:
    """Layers with more than two weights of four that are not zero: NVIDIA's own check, of TensorRT's guide."""
    reasons = {}
    for layer in layers:
        axes = layer.axes
        assert axes is not None
        fours = np.moveaxis(layer.numbers() != 0, axes.reduction, -1)
        most = int(fours.reshape(-1, OF).sum(axis=1).max(initial=0))
        if most > MOST:
            reasons[layer.name] = f"{most} of {OF} input channels in a row have weights that are not zero"
    return reasons


ENGINE = Engine(
    name="tensorrt",
    called="TensorRT",
    structure="2:4",
    patterns=("2:4", "1:4"),
    quantize="fp16",
    refused={
        "int4": "TensorRT reads zeros of int8 or 16-bit weights: take --quantize int8, or leave it out for fp16",
        "int8-dynamic": "TensorRT takes int8 with fixed ranges alone: take --quantize int8, or leave it out for fp16",
    },
    rules=(
        Rule("The layer is a convolution or a matrix product with constant weights on the right.", PRODUCTS, _kind),
        Rule("A product's weight has two axes.", PRODUCTS, _plain_axes),
        Rule("It has no groups.", GROUPS, _ungrouped),
        Rule(f"Its input channels are a multiple of {OF}.", GUIDE, _fours),
    ),
    zeros_source=GUIDE,
    unused=_unused,
    advice="build it with BuilderFlag.SPARSE_WEIGHTS (trtexec --sparsity=enable) for Ampere or later; TensorRT times "
    "dense kernels as well, and takes these where they are faster",
    signed=True,
    remarks={
        "int8": "TensorRT 8.6 was seen to leave its sparse kernels aside in a file with Q/DQ nodes "
        "(NVIDIA/TensorRT#4694): compare with fp16",
        "no": "TensorRT runs sparse kernels in fp16 and int8 alone: build with --fp16, which TensorRT 11 no longer has",
    },
)
"""Sparse kernels are for fp16 and int8. From TensorRT 11 on the types of the file count, so fp16 is written."""
