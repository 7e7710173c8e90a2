"""Constants become initializers as onnx-ir's own pass makes them."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import parser
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from onnxprune import model_io
from onnxprune.passes.lift_constants import LiftConstants

_CONSTANTS = {
    "value": "value = float[2] {1, 2}",
    "one": "value_int = 3",
    "several": "value_ints = [3, 4]",
    "real": "value_float = 1.5",
    "reals": "value_floats = [1.5, 2.5]",
    "text": 'value_string = "a"',
    "texts": 'value_strings = ["a", "bc"]',
}


def lifted(text: str, lift: ir.passes.InPlacePass) -> tuple[bytes, bool]:
    model = ir.from_proto(parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{text}'))
    modified = lift(model).modified
    return model_io.to_bytes(model), modified


def same(text: str) -> bool:
    ours, modified = lifted(text, LiftConstants())
    theirs, changed = lifted(text, LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0))
    assert ours == theirs
    assert modified == changed
    return modified


@pytest.mark.parametrize("attribute", _CONSTANTS.values(), ids=_CONSTANTS)
def test_every_kind_of_constant(attribute: str) -> None:
    nodes = f"c = Constant <{attribute}> () d = Identity(c) y = Shape(d)"
    assert same(f"g (float[N] x) => (int64[R] y) {{ {nodes} }}")


def test_bodies_and_outputs() -> None:
    """A constant of a branch stays in it; one that is an output stays a node."""
    assert same("""g (float[2] x, bool c) => (float[2] y, float[2] k) {
        k = Constant <value = float[2] {1, 2}> ()
        y = If (c) <
            then_branch = one () => (float[2] t) { a = Constant <value = float[2] {3, 4}> () t = Add(x, a) },
            else_branch = two () => (float[2] e) { e = Constant <value = float[2] {5, 6}> () }
        >
    }""")
    assert not same("g (float[2] x) => (float[2] y) { y = Relu(x) }")
