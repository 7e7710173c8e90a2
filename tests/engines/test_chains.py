"""Parts of a graph that XNNPACK runs in NCHW, and what keeps it from others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import graph, random

from onnxprune.engines import ENGINES
from onnxprune.engines.chains import chains
from onnxprune.pipeline.prepare import prepare
from onnxprune.selection.engines import layer_of
from onnxprune.structure.weights import prunable_weights

WEIGHTS = {
    "stem": random(8, 3, 3, 3),
    "wide": random(16, 8, 1, 1),
    "each": random(16, 1, 3, 3),
    "down": random(8, 16, 1, 1),
    "head": random(10, 8),
    "six": np.array(6, np.float32),
    "zero": np.array(0, np.float32),
}
CHAIN = (
    "a = Conv <strides = [2,2], pads = [1,1,1,1]> (x, stem) b = Relu (a) c = Conv (b, wide) d = Clip (c, zero, six) "
    "e = Conv <group = 16, pads = [1,1,1,1], strides = [2,2]> (d, each) f = Conv (e, down) g = GlobalAveragePool (f) "
)
END = "h = Flatten (g) y = Gemm <transB = 1> (h, head)"


def model(text: str) -> ir.Model:
    return graph(f"m (float[1,3,32,32] x) => (float[1,10] y) {{ {text} }}", WEIGHTS)


def obstacles(text: str) -> list[str]:
    """Of parts that hold a 1x1 convolution."""
    found = chains(model(text).graph)
    return [chain.obstacle for chain in found if any(_reads(node, "wide") for node in chain.nodes)]


def _reads(node: ir.Node, name: str) -> bool:
    return any(value is not None and value.name == name for value in node.inputs)


def test_a_mobile_network_is_one_chain() -> None:
    assert obstacles(CHAIN + END) == [""]


@pytest.mark.parametrize(
    "mean",
    ["g = ReduceMean <axes = [2,3]> (f)", "g = ReduceMean <axes = [-1,-2], keepdims = 0> (f)"],
)
def test_a_mean_over_pixels_ends_a_chain_however_it_is_written(mean: str) -> None:
    assert obstacles(CHAIN.replace("g = GlobalAveragePool (f)", mean) + END) == [""]


def test_a_residual_sum_and_squeeze_and_excitation_stay_inside() -> None:
    gate = (
        "p = GlobalAveragePool (c) q = Conv (p, down) r = Relu (q) s = Conv (r, wide) t = Sigmoid (s) u = Mul (c, t) "
    )
    text = CHAIN.replace("d = Clip (c", gate + "d = Clip (u")
    assert obstacles(text + END) == [""]
    assert obstacles(CHAIN.replace("b = Relu (a)", "b0 = Relu (a) b1 = Neg (a) b = Add (b0, b1)") + END) == [""]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("strides = [2,2], pads = [1,1,1,1]> (x, stem)", "pads = [1,1,1,1]> (x, stem)", "comes from Conv"),
        ("d = Clip (c, zero, six)", "d = MaxPool <kernel_shape = [2,2]> (c)", "MaxPool 'd' reads 'c'"),
        ("d = Clip (c, zero, six)", "d = Softmax (c)", "Softmax 'd' reads 'c'"),
        ("group = 16, pads = [1,1,1,1]", "group = 16", "reads 'd'"),
        ("g = GlobalAveragePool (f)", "g = MaxPool <kernel_shape = [8,8]> (f)", "MaxPool 'g' reads 'f'"),
        ("b = Relu (a)", "b = Relu (a) o = Softmax (b) o2 = Relu (o)", "Softmax 'o' reads 'b'"),
    ],
)
def test_one_other_node_keeps_a_chain_dense(old: str, new: str, why: str) -> None:
    assert old in CHAIN
    assert any(why in obstacle for obstacle in obstacles(CHAIN.replace(old, new) + END))


def test_a_chain_counts_as_one() -> None:
    """XNNPACK adds up the zeros of all 1x1 convolutions of a chain, and wants more than two thirds."""
    network = model(CHAIN + END)
    for zeros, used in ((85, False), (86, True)):  # of 2 * 128 weights: a third, and just over two thirds
        for name in ("wide", "down"):
            array = np.ones(128, np.float32)
            array[:zeros] = 0
            network.graph.initializers[name].const_value = ir.Tensor(array.reshape(WEIGHTS[name].shape), name=name)
        weights = prunable_weights(prepare(network.clone()))
        fit = [layer_of(weight) for weight in weights if weight.name in ("wide", "down")]
        assert (not ENGINES["xnnpack"].unused(fit)) == used
