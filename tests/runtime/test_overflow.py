"""Integer products are exact in sessions that count outputs, whatever the processor does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

from onnxprune import model_io
from onnxprune.runtime import overflow
from onnxprune.runtime.session import make_session, run

_HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'


def product(weights: str = "int8", data: str = "uint8") -> ir.Model:
    """[2, 64] x [64, 4] with weights of 127 and -1."""
    numbers = ", ".join("127" if i % 5 else ("-1" if weights == "int8" else "1") for i in range(64 * 4))
    graph = f"g ({data}[2, 64] x) => (int32[2, 4] y) <{weights}[64, 4] w = {{{numbers}}}> {{ y = MatMulInteger(x, w) }}"
    return model_io.load_any(parser.parse_model(_HEAD + graph))


@pytest.mark.parametrize("optimize", ["off", "basic"])
def test_products_of_whole_bytes_are_exact(optimize: str) -> None:
    model, x = product(), np.full((2, 64), 255, np.uint8)
    weights = model.graph.initializers["w"].const_value
    assert weights is not None
    sums = run(make_session(model, optimize=optimize), {"x": x})["y"]  # type: ignore[arg-type]
    np.testing.assert_array_equal(sums, x.astype(np.int32) @ weights.numpy().astype(np.int32))


def test_only_such_products_change_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "processor_overflows", lambda: True)
    plain = model_io.load_any(parser.parse_model(_HEAD + "g (float[N] x) => (float[N] y) { y = Relu(x) }"))
    assert overflow.make_exact(ort.SessionOptions(), product()) != ()
    for model in (plain, product("uint8"), product(data="int8")):
        options = ort.SessionOptions()
        level = options.graph_optimization_level
        assert overflow.make_exact(options, model) == ()
        assert options.graph_optimization_level == level


def test_nothing_changes_where_the_processor_has_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "processor_overflows", lambda: False)
    assert overflow.make_exact(ort.SessionOptions(), product()) == ()
