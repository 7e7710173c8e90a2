"""Real models and our own architectures: same outputs as ONNX Runtime, gradients everywhere, lossless write-back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.bridge import to_torch, write_back
from tests import zoo

from .models import (
    SHARED,
    assert_same,
    bridge,
    buffers_with_gradient,
    generator,
    own_noise,
    parameters_without_gradient,
    rest_of_the_float_initializers,
    runtime,
    within,
)

ZOO = SHARED / "zoo"
FILES = sorted(ZOO.glob("*.onnx"))
NEVER_TRAINED = {  # fmt: skip
    "BatchNormalization": (3, 4),
    "Resize": (1, 2),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QLinearAdd": (1, 2, 4, 5, 6, 7),
    "Clip": (1, 2),
    "Pad": (2,),
    "Pow": (1,),
    "OneHot": (2,),
    "Equal": (0, 1),
    "Where": (0,),
    "Gather": (1,),
}
"""Inputs that are no weights: statistics, sizes, quantisation parameters, bounds, conditions."""
ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Min", "Max", "Sqrt", "Pow", "Where"}


def feeds_for(path: Path) -> dict[str, np.ndarray]:
    """Random inputs of the shapes in the manifest; a sampling rate where one is asked for."""
    entry = next(entry for entry in json.loads((ZOO / "manifest.json").read_text()) if entry["name"] == path.stem)
    rng = generator()
    feeds = {}
    for given in entry["inputs"]:
        shape = entry["run_input_shapes"][given["name"]]
        if given["dtype"] == "FLOAT":
            feeds[given["name"]] = rng.standard_normal(shape).astype(np.float32)
        else:
            feeds[given["name"]] = np.full(shape, 16000, dtype=np.dtype(given["dtype"].lower()))
    return feeds


def untrained_for_a_reason(name: str, model: ir.Model) -> bool:
    """Whether every use of an initializer is one that does not train, or it is a number in a formula."""
    value = model.graph.initializers[name]
    for node, index in value.uses():
        scalar = value.const_value is not None and value.const_value.size == 1 and node.op_type in ARITHMETIC
        if index not in NEVER_TRAINED.get(node.op_type, ()) and not scalar:
            return False
    return True


def check(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """The three promises of the bridge about one model."""
    module = to_torch(model)
    reference = runtime(model, feeds)
    ours = bridge(module, feeds)
    if not within(ours, reference, 1e-4):
        assert_same(ours, reference, max(1e-4, 4 * own_noise(model, feeds)))
    written = ir.to_proto(write_back(module, model))
    for ours, theirs in zip(runtime(written, feeds), reference, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    source = ir.from_proto(model)
    for name, value in ir.from_proto(written).graph.initializers.items():
        original = source.graph.initializers[name].const_value
        assert value.const_value is not None and original is not None
        assert value.const_value.numpy().tobytes() == original.numpy().tobytes()
    other = {name: -x if x.dtype == np.float32 else x for name, x in feeds.items()}  # takes the other branch of an If
    missing = set(parameters_without_gradient(module, feeds))
    missing &= set(parameters_without_gradient(module, other)) if missing else set()
    assert not missing, f"no gradient reaches {sorted(missing)}"
    used = {name for name, value in source.graph.initializers.items() if value.uses()}
    rest = rest_of_the_float_initializers(module, source) & used
    unexplained = {name for name in rest if not untrained_for_a_reason(name, source)}
    assert not buffers_with_gradient(module, feeds, unexplained)


@pytest.mark.zoo
@pytest.mark.skipif(not FILES, reason="the shared model zoo is not here (ONNXPRUNE_SHARED)")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_real_models(path: Path) -> None:
    check(onnx.load(path), feeds_for(path))


@pytest.mark.parametrize("case", zoo.cases(), ids=lambda case: "-".join(map(str, case)))
def test_our_architectures(case: tuple[Any, ...]) -> None:
    name, exporter, opset = case
    check(zoo.export(name, exporter, opset), zoo.feeds(name, batch=3))
