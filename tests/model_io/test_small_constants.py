"""Small constants are initializers as soon as a model is loaded, as the pass would make them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper, parser

from onnxprune import model_io
from onnxprune.errors import ModelError
from onnxprune.passes.lift_constants import LiftConstants

_HEAD = '<ir_version: {version}, opset_import: ["": 20]>\n'
_NODES = "c = Constant <value = float[2] {1, 2}> () y = Add(x, c)"


def parsed(body: str, version: int = 10) -> onnx.ModelProto:
    return parser.parse_model(_HEAD.format(version=version) + body)


def lifted_later(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    LiftConstants()(model)
    return model


@pytest.mark.parametrize(
    "body",
    [
        f"g (float[N] x) => (float[N] y) {{ {_NODES} }}",
        f"g (float[N] x) => (float[N] y) <float[M] c> {{ {_NODES} }}",  # what is said of it is less than it holds
        "g (float[N] x) => (float[N] y) <float[2] w = {3, 4}> {"
        " a = Constant <value = float[2] {1, 2}> () b = Mul(x, w) y = Add(b, a) }",
        'g (float[N] x) => (float[N] y) { s = Constant <value_string = "a"> () y = Relu(x) }',
    ],
    ids=["alone", "described otherwise", "behind an initializer", "text"],
)
def test_loading_lifts_as_the_pass_does(body: str) -> None:
    loaded = model_io.load_any(parsed(body))
    LiftConstants()(loaded)
    assert model_io.to_bytes(loaded) == model_io.to_bytes(lifted_later(parsed(body)))
    assert "Constant" not in {node.op_type for node in loaded.graph}


def test_no_constant_node_is_made() -> None:
    model = model_io.load_any(parsed(f"g (float[N] x) => (float[N] y) {{ {_NODES} }}"))
    assert [node.op_type for node in model.graph] == ["Add"]
    value = model.graph.initializers["c"]
    assert isinstance(value.const_value, ir.Tensor) and value.shape == ir.Shape([2])
    np.testing.assert_array_equal(value.const_value.numpy(), [1, 2])


def test_outputs_old_models_large_ones_and_bodies_keep_their_nodes() -> None:
    output = "g (float[N] x) => (float[N] y, float[2] c) { c = Constant <value = float[2] {1, 2}> () y = Add(x, c) }"
    body = """g (float[2] x, bool k) => (float[2] y) { y = If (k) <
        then_branch = one () => (float[2] t) { a = Constant <value = float[2] {3, 4}> () t = Add(x, a) },
        else_branch = two () => (float[2] e) { e = Relu(x) }
    > }"""
    large = parsed(f"g (float[N] x) => (float[N] y) {{ {_NODES} }}")
    large.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(np.ones(1 << 13, np.float32)))
    old = parsed(f"g (float[N] x) => (float[N] y) {{ {_NODES} }}", version=3)
    for proto in (parsed(output), parsed(body), large, old):
        assert not model_io.load_any(proto).graph.initializers


def test_a_name_that_is_there_twice_is_still_refused() -> None:
    proto = parsed(f"g (float[N] x) => (float[N] y) {{ {_NODES} }}")
    tensor = numpy_helper.from_array(np.ones(2, np.float32))
    proto.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    with pytest.raises(ModelError, match="redeclared"):
        model_io.load_any(proto)
