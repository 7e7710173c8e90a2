"""Models quantised by ONNX Runtime's own tool: same outputs as ONNX Runtime, and gradients to every integer weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from tests import zoo

from .models import assert_like_runtime, assert_same, bridge, model, parameters_without_gradient, runtime


class Samples(CalibrationDataReader):
    """A few batches, once."""

    def __init__(self, architecture: str) -> None:
        self._batches = iter([zoo.feeds(architecture, batch=2, seed=seed) for seed in range(2)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=lambda form: form.name)
@pytest.mark.parametrize("architecture", ["resnet_basic", "vit"])
def test_static_quantisation(architecture: str, form: QuantFormat, tmp_path: Path) -> None:
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(zoo.export(architecture, "legacy", 17), source)
    quantize_static(source, target, Samples(architecture), quant_format=form, per_channel=form is QuantFormat.QDQ)
    quantized, feeds = onnx.load(target), zoo.feeds(architecture, batch=2)
    module = assert_like_runtime(quantized, feeds)
    integers = {name for name, target in module.targets.items() if target.role.name == "QUANTIZED"}
    assert len(integers) >= 9
    assert not parameters_without_gradient(module, feeds)


def test_dynamic_quantisation(tmp_path: Path) -> None:
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(zoo.export("vit", "legacy", 17), source)
    quantize_dynamic(source, target)
    module = assert_like_runtime(onnx.load(target), zoo.feeds("vit", batch=2))
    assert not parameters_without_gradient(module, zoo.feeds("vit", batch=2))


@pytest.mark.parametrize("zero_point", [7, 8])
def test_ties_of_a_quantised_sum_fall_as_in_onnx_runtime(zero_point: int) -> None:
    values = np.arange(256, dtype=np.uint8)
    names = ["a", "s", "za", "b", "s", "zb", "s2", "zc"]
    node = oh.make_node("QLinearAdd", names, ["y"], domain="com.microsoft")
    constants = {
        "s": np.float32(0.1), "s2": np.float32(0.2), "za": np.uint8(5), "zb": np.uint8(2), "zc": np.uint8(zero_point),
    }  # fmt: skip
    inputs = dict.fromkeys(("a", "b"), (onnx.TensorProto.UINT8, (256,)))
    assert_like_runtime(
        model([node], inputs, ["y"], constants, microsoft=True), {"a": values, "b": values[::-1] // 3}, 0
    )


def test_gradients_pass_a_quantised_concat() -> None:
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["h"]),
        oh.make_node("QuantizeLinear", ["h", "s", "z"], ["q"]),
        oh.make_node("QLinearConcat", ["s2", "z", "q", "s", "z", "q", "s", "z"], ["c"], domain="com.microsoft", axis=1),
        oh.make_node("DequantizeLinear", ["c", "s2", "z"], ["y"]),
    ]
    weight = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    constants = {"w": weight, "s": np.float32(0.02), "s2": np.float32(0.04), "z": np.uint8(128)}
    proto = model(nodes, {"x": (onnx.TensorProto.FLOAT, ("n", 3))}, ["y"], constants, microsoft=True)
    feeds = {"x": np.ones((2, 3), np.float32)}
    module = assert_like_runtime(proto, feeds)
    assert_same(bridge(module, feeds), runtime(proto, feeds), 0)
    assert not parameters_without_gradient(module, feeds)
