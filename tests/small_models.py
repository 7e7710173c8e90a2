"""Small graphs written as text, for tests that want to see every node."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser


def graph(text: str, weights: Mapping[str, npt.NDArray[np.generic]], *, opset: int = 17, domains: str = "") -> ir.Model:
    """Build a model from ONNX's text form; the weights become initializers."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{domains}]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items())
    onnx.checker.check_model(model)
    return ir.from_proto(model)


def random(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Normal random numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def two_layers(hidden: int = 32) -> ir.Model:
    """x [N, 8] -> hidden neurons -> y [N, 4]."""
    return graph(
        "agraph (float[N,8] x) => (float[N,4] y) { h = Gemm(x, w1, b1) r = Relu(h) y = Gemm(r, w2, b2) }",
        {"w1": random(8, hidden), "b1": random(hidden), "w2": random(hidden, 4), "b2": random(4)},
    )


def conv_net(c: int = 32, *, pads: str = "[0,0,0,0]") -> ir.Model:
    """Two convolutions with BatchNorm between them, then global pooling."""
    weights = {"w1": random(c, 3, 3, 3), "w2": random(c, c, 3, 3), "w3": random(10, c)}
    for name in ("scale", "shift", "mean"):
        weights[name] = random(c, seed=len(name))
    weights["var"] = np.abs(random(c, seed=9)) + np.float32(0.5)
    return graph(
        "agraph (float[N,3,12,12] x) => (float[N,10] y) {"
        f"a = Conv <pads = {pads}> (x, w1) b = BatchNormalization(a, scale, shift, mean, var) c = Relu(b)"
        f"d = Conv <pads = {pads}> (c, w2) e = Relu(d) f = GlobalAveragePool(e) g = Flatten(f)"
        "y = Gemm <transB = 1> (g, w3) }",
        weights,
    )


def residual_net() -> ir.Model:
    """Two residual blocks: a cut of the sum saves a quarter of nearly everything, one inside a block much less."""
    shapes = {
        "w1": (16, 3, 3, 3),
        "w2": (32, 16, 3, 3),
        "w3": (16, 32, 3, 3),
        "w4": (32, 16, 3, 3),
        "w5": (16, 32, 3, 3),
    }
    return graph(
        "agraph (float[1,3,12,12] x) => (float[1,5] y) {"
        "a = Conv <pads = [1,1,1,1]> (x, w1) b = Relu(a)"
        "c = Conv <pads = [1,1,1,1]> (b, w2) d = Relu(c) e = Conv <pads = [1,1,1,1]> (d, w3) f = Add(b, e)"
        "g = Conv <pads = [1,1,1,1]> (f, w4) h = Relu(g) i = Conv <pads = [1,1,1,1]> (h, w5) j = Add(f, i)"
        "k = GlobalAveragePool(j) l = Flatten(k) y = Gemm <transB = 1> (l, w6) }",
        {name: random(*shape) for name, shape in shapes.items()} | {"w6": random(5, 16)},
    )


def array(model: ir.Model, name: str) -> npt.NDArray[np.generic]:
    """Return the content of an initializer."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().copy()


def set_array(model: ir.Model, name: str, content: npt.NDArray[np.generic]) -> None:
    """Replace the content of an initializer."""
    model.graph.initializers[name].const_value = ir.Tensor(np.ascontiguousarray(content), name=name)


__all__ = ["array", "conv_net", "graph", "random", "set_array", "two_layers"]


def halved(model: ir.Model) -> ir.Model:
    """The model in float16, changed in place."""
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy().astype(np.float16), name=value.name)
        value.dtype = ir.DataType.FLOAT16
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.dtype = ir.DataType.FLOAT16
    return model
