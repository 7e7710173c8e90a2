"""Small networks for the tests of recovery, as text, with weights drawn by a seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxprune.passes import MaskWeights, Normalise, RemoveUnits, Tidy
from onnxprune.structure.analysis import analyse
from onnxprune.structure.rewrite import Kept

Array = npt.NDArray[np.float32]

MLP = """<ir_version: 8, opset_import: ["": 13]>
mlp (float[N, 6] x) => (float[N, 3] y) {
  h = Gemm<transB = 1>(x, w1, b1)
  r = Relu(h)
  y = Gemm<transB = 1>(r, w2, b2)
}"""
MLP_SHAPES = {"w1": (8, 6), "b1": (8,), "w2": (3, 8), "b2": (3,)}

PRODUCTS = """<ir_version: 8, opset_import: ["": 13]>
products (float[N, 5, 6] x) => (float[N, 5, 3] y) {
  m = MatMul(x, w1)
  h = Add(b1, m)
  r = Relu(h)
  y = MatMul(r, w2)
}"""
PRODUCT_SHAPES = {"w1": (6, 8), "b1": (8,), "w2": (8, 3)}

CONVOLUTIONS = """<ir_version: 8, opset_import: ["": 13]>
convolutions (float[N, 4, 9, 9] x) => (float[N, 3] y) {
  a = Conv<strides = [2, 1], pads = [1, 0, 1, 2]>(x, w1, b1)
  r = Relu(a)
  c = Conv<group = 2, dilations = [2, 2]>(r, w2)
  n = BatchNormalization(c, scale, shift, mean, var)
  q = Relu(n)
  p = GlobalAveragePool(q)
  f = Flatten(p)
  y = Gemm<transB = 1, alpha = 0.5>(f, w3, b3)
}"""
CONVOLUTION_SHAPES = {
    "w1": (8, 4, 3, 2), "b1": (8,), "w2": (6, 4, 2, 3), "scale": (6,), "shift": (6,), "mean": (6,), "var": (6,),
    "w3": (3, 6), "b3": (3,),
}  # fmt: skip


_STACK = """<ir_version: 8, opset_import: ["": 13]>
stack (float[N, 8] x) => (float[N, classes] y) {
  s = Gemm<transB = 1>(x, w0, b0)
  a = Gemm<transB = 1>(s, w1, b1) r = Relu(a) b = Gemm<transB = 1>(r, w2, b2) t = Add(s, b)
  c = Gemm<transB = 1>(t, w3, b3) q = Relu(c) d = Gemm<transB = 1>(q, w4, b4) u = Add(t, d)
  y = Gemm<transB = 1>(u, w5, b5)
}"""


def network(text: str, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> ir.Model:
    """The model with weights from a normal distribution; variances are positive."""
    rng = np.random.default_rng(seed)
    proto = onnx.parser.parse_model(text)
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        array = np.abs(array) + 0.5 if name == "var" else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    Normalise()(model)
    return model


def correlated(samples: int, shape: tuple[int, ...], seed: int = 1) -> Array:
    """Inputs whose last axis has few degrees of freedom, as real activations have."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(0).standard_normal((3, shape[-1]))
    noise = 0.1 * rng.standard_normal((samples, *shape))
    return (rng.standard_normal((samples, *shape[:-1], 3)) @ basis + noise).astype(np.float32)


def zeroed(model: ir.Model, masks: Mapping[str, npt.NDArray[np.bool_]]) -> ir.Model:
    """A copy with single weights zeroed; masks are True where a weight stays."""
    structure = analyse(model.clone())
    by_name = {str(v.name): v for v in structure.weights}
    MaskWeights(structure, {by_name[name]: mask for name, mask in masks.items()})(structure.model)
    return structure.model


def cut(model: ir.Model, weight: str, axis: int, gone: list[int]) -> tuple[ir.Model, Kept]:
    """A copy without the units at some indices of an axis of a weight, and the kept indices."""
    structure = analyse(model.clone())
    value = next(v for v in structure.weights if v.name == weight)
    ids = structure.ids(value, axis)
    assert ids is not None
    rows, atoms = structure.terms.members(ids)
    removed = np.zeros(structure.terms.count, bool)
    for atom in np.unique(atoms):
        removed[atom] = np.isin(rows[atoms == atom], gone).all()
    assert removed.any()
    remove = RemoveUnits(structure, removed)
    remove(structure.model)
    Tidy()(structure.model)
    return structure.model, remove.kept


def constant(model: ir.Model, name: str) -> npt.NDArray[np.float64]:
    """An initializer's numbers."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().astype(np.float64)


def residual_stack(outputs: int) -> ir.Model:
    """Two residual blocks of width 6 on inputs [N, 8], and a layer of so many outputs."""
    shapes = {"w0": (6, 8), "b0": (6,), "w1": (16, 6), "b1": (16,), "w2": (6, 16), "b2": (6,), "w3": (16, 6),
              "b3": (16,), "w4": (6, 16), "b4": (6,), "w5": (outputs, 6), "b5": (outputs,)}  # fmt: skip
    return network(_STACK.replace("classes", str(outputs)), shapes)
