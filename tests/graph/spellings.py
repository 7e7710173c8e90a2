"""The same network in every spelling: Gemm, MatMul on either side, behind a Transpose, as 1x1 Conv, and fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

WIDTHS = (8, 16, 16, 4)  # in, two hidden layers, out
NAMES = ("w1", "w2", "w3")
Array = npt.NDArray[np.float32]
Layer = Callable[[str, str, str, bool], list[onnx.NodeProto]]
"""From the data, the weight, the output and whether a Relu follows, to nodes."""


@dataclass(frozen=True)
class Spelling:
    """One way to write a fully connected layer.

    Attributes:
        layer: Its nodes.
        stored: Turns a weight [outputs, inputs] into the tensor that is stored.
        matrix: Turns an array of the stored shape into [outputs, inputs].
        shape: What one sample is: its width becomes this shape.
    """

    layer: Layer
    stored: Callable[[Array], Array]
    matrix: Callable[[Array], Array]
    shape: Callable[[int], tuple[int, ...]] = lambda width: (width,)


def _node(op: str, inputs: list[str], output: str, relu: bool, **attributes: object) -> list[onnx.NodeProto]:
    """A node and, where one follows, a Relu behind it."""
    if not relu:
        return [helper.make_node(op, inputs, [output], **attributes)]
    before = f"{output}_before"
    return [helper.make_node(op, inputs, [before], **attributes), helper.make_node("Relu", [before], [output])]


def _transposed(x: str, w: str, y: str, relu: bool) -> list[onnx.NodeProto]:
    turned = helper.make_node("Transpose", [w], [f"{w}_turned"], perm=[1, 0])
    return [turned, *_node("MatMul", [x, f"{w}_turned"], y, relu)]


def _fused_gemm(x: str, w: str, y: str, relu: bool) -> list[onnx.NodeProto]:
    if not relu:
        return _node("Gemm", [x, w], y, relu, transB=1)
    return _node("FusedGemm", [x, w], y, False, domain="com.microsoft", transB=1, activation="Relu")


def _same(array: Array) -> Array:
    return array


def _turned(array: Array) -> Array:
    return np.ascontiguousarray(array.T)


def _kernel(array: Array) -> Array:
    return array[:, :, None, None]


def _without_kernel(array: Array) -> Array:
    return array[:, :, 0, 0]


def _plain(op: str, **attributes: object) -> Layer:
    return lambda x, w, y, relu: _node(op, [x, w], y, relu, **attributes)


SPELLINGS = {
    "Gemm(transB)": Spelling(_plain("Gemm", transB=1), _same, _same),
    "Gemm": Spelling(_plain("Gemm"), _turned, _turned),
    "MatMul": Spelling(_plain("MatMul"), _turned, _turned),
    "MatMul(x, Transpose(W))": Spelling(_transposed, _same, _same),
    "MatMul(W, x)": Spelling(
        lambda x, w, y, relu: _node("MatMul", [w, x], y, relu), _same, _same, lambda width: (width, 1)
    ),
    "Conv 1x1": Spelling(_plain("Conv"), _kernel, _without_kernel, lambda width: (width, 1, 1)),
    "FusedGemm": Spelling(_fused_gemm, _same, _same),
    "FusedMatMul": Spelling(_plain("FusedMatMul", domain="com.microsoft", transB=1), _same, _same),
}


def weights() -> dict[str, Array]:
    """The weights [outputs, inputs] of the network; no two of their numbers are alike."""
    rng = np.random.default_rng(7)
    shapes = zip(NAMES, WIDTHS[1:], WIDTHS[:-1], strict=True)
    return {name: rng.standard_normal((m, k)).astype(np.float32) * 0.5 for name, m, k in shapes}


def network(name: str) -> onnx.ModelProto:
    """The network in one spelling: x [N, 8 or as it must be] -> y [N, 4]."""
    spelling = SPELLINGS[name]
    nodes, here = [], "x"
    for i, weight in enumerate(NAMES):
        last = i == len(NAMES) - 1
        nodes += spelling.layer(here, weight, "z" if last else f"h{i}", not last)
        here = f"h{i}"
    nodes.append(helper.make_node("Flatten", ["z"], ["y"], axis=1))
    tensors = [numpy_helper.from_array(spelling.stored(w), name) for name, w in weights().items()]
    x = helper.make_tensor_value_info("x", 1, ["N", *spelling.shape(WIDTHS[0])])
    y = helper.make_tensor_value_info("y", 1, ["N", WIDTHS[-1]])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "net", [x], [y], tensors), opset_imports=opsets, ir_version=8)


def samples(name: str, count: int = 64) -> Array:
    """Inputs of the network in one spelling; the same numbers for all."""
    rng = np.random.default_rng(3)
    mixed = np.eye(WIDTHS[0]) + 0.2 * rng.standard_normal((WIDTHS[0], WIDTHS[0]))
    flat = rng.standard_normal((count, WIDTHS[0])) @ mixed
    return flat.astype(np.float32).reshape(count, *SPELLINGS[name].shape(WIDTHS[0]))


def labels(count: int = 64) -> npt.NDArray[np.int64]:
    """A class for each sample."""
    return np.random.default_rng(5).integers(0, WIDTHS[-1], count)
