"""Each rule of an engine, on a layer that breaks it alone, and on one that keeps it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import graph, random

from onnxprune.engines import ENGINES, Layer, misfits
from onnxprune.pipeline.prepare import prepare
from onnxprune.selection.engines import layer_of
from onnxprune.structure.weights import prunable_weights


def layers(model: ir.Model) -> list[Layer]:
    return [layer_of(weight) for weight in prunable_weights(prepare(model))]


def product(inputs: int, outputs: int) -> ir.Model:
    text = f"a (float[N,{inputs}] x) => (float[N,{outputs}] y) {{ y = MatMul(x, w) }}"
    return graph(text, {"w": random(inputs, outputs)})


def convolution(inputs: int, outputs: int, attributes: str = "", kernel: int = 1) -> ir.Model:
    groups = int(attributes.partition("group = ")[2][:1] or 1)
    text = f"a (float[N,{inputs},9,9] x) => (float[N,{outputs},h,v] y) {{ y = Conv <{attributes}> (x, w) }}"
    return graph(text.replace("<>", ""), {"w": random(outputs, inputs // groups, kernel, kernel)})


def batched() -> ir.Model:
    text = "a (float[2,5,64] x) => (float[2,5,64] y) { y = MatMul(x, w) }"
    return graph(text, {"w": random(2, 64, 64)})


def left() -> ir.Model:
    text = "a (float[64,7] x) => (float[64,7] y) { y = MatMul(w, x) }"
    return graph(text, {"w": random(64, 64)})


@pytest.mark.parametrize(
    ("engine", "model", "why"),
    [
        ("openvino", product(64, 128), ""),
        ("openvino", product(64, 96), "64 x 96, and both sides"),
        ("openvino", product(32, 128), "both sides have to be multiples of 64"),
        ("openvino", convolution(64, 64), "not of Conv"),
        ("openvino", left(), "weights on the right alone"),
        ("openvino", batched(), "3 axes"),
        ("tensorrt", product(8, 3), ""),
        ("tensorrt", product(6, 8), "6 input channels, no multiple of 4"),
        ("tensorrt", convolution(8, 3, kernel=3), ""),
        ("tensorrt", convolution(3, 8, kernel=3), "3 input channels"),
        ("tensorrt", convolution(8, 8, "group = 2"), "2 groups"),
        ("tensorrt", left(), "weights on the right"),
        ("tensorrt", batched(), "3 axes"),
        ("xnnpack", product(8, 8), "not of MatMul"),
        ("xnnpack", convolution(8, 8, kernel=3), "its kernel is 3x3"),
        ("xnnpack", convolution(8, 8, "strides = [2,2]"), "strides are [2, 2]"),
        ("xnnpack", convolution(8, 8, "pads = [1,1,1,1]"), "pads are [1, 1, 1, 1]"),
        ("xnnpack", convolution(8, 8, "group = 2"), "2 groups"),
        ("xnnpack", convolution(8, 8), "no sparse kernels for its part of the graph"),
    ],
)
def test_a_rule_says_why_a_layer_does_not_fit(engine: str, model: ir.Model, why: str) -> None:
    reasons = misfits(ENGINES[engine], layers(model))
    assert why in reasons["w"] if why else not reasons


@pytest.mark.parametrize("name", ENGINES)
def test_every_rule_names_its_source(name: str) -> None:
    engine = ENGINES[name]
    assert engine.rules and engine.zeros_source.startswith("https://")
    assert all(rule.source.startswith("https://") and rule.about.endswith(".") for rule in engine.rules)


def test_tensorrt_counts_the_weights_of_four_input_channels_as_nvidia_does() -> None:
    model = convolution(8, 2, kernel=3)
    weight = model.graph.initializers["w"]
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[:, [0, 1, 5, 7]] = 0
    weight.const_value = ir.Tensor(array, name="w")
    assert not ENGINES["tensorrt"].unused(layers(model.clone()))
    array[1, 0, 2, 2] = 1
    weight.const_value = ir.Tensor(array, name="w")
    assert "3 of 4 input channels" in ENGINES["tensorrt"].unused(layers(model))["w"]


def test_openvino_wants_int8_stored_outputs_first() -> None:
    reasons = ENGINES["openvino"].unused(layers(product(64, 64)))
    assert reasons == {"w": "its weights are not int8"}
    text = "a (float[N,64] x) => (float[N,64] y) { w = DequantizeLinear (q, scale, zero) y = MatMul (x, w) }"
    quantised = np.eye(64, dtype=np.int8)
    constants = {"q": quantised, "scale": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
    assert "stored inputs first" in ENGINES["openvino"].unused(layers(graph(text, constants)))["q"]
    turned = text.replace("y = MatMul (x, w)", "t = Transpose <perm = [1,0]> (w) y = MatMul (x, t)")
    assert not ENGINES["openvino"].unused(layers(graph(turned, constants)))
