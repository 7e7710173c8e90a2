"""Small graphs whose nodes are measured one by one: convolutions, products, copies, what treats each number alone.

A profile of ONNX Runtime names nodes by what became of them, but tells the shapes that they read and wrote: no two
nodes of a probe have the same ones. Channels are multiples of 32 or 16, since a profile tells whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.hints import Feeds

Shape = tuple[int, ...]
_MOST = 80_000_000  # multiply-adds of a node

POINTWISE: Mapping[int, Sequence[int]] = {
    112: (16, 32, 96, 16, 64, 32),
    56: (32, 144, 32, 96, 64, 256, 128, 48, 192),
    28: (32, 192, 64, 128, 512, 48, 256, 96),
    14: (64, 384, 96, 576, 128, 1024, 256, 80, 480),
    7: (160, 960, 320, 1280, 512, 128, 2048, 96, 640),
}
KERNELS: Mapping[int, Sequence[int]] = {
    56: (16, 64, 32, 48, 16, 96),
    28: (32, 128, 64, 96, 48, 16),
    14: (64, 256, 128, 192, 48, 80),
    7: (128, 512, 256, 64, 320, 96),
}
DEPTHWISE: Mapping[int, Sequence[int]] = {
    112: (16, 32, 96), 56: (32, 64, 144), 28: (32, 96, 192), 14: (96, 192, 384, 576), 7: (160, 480, 960)
}  # fmt: skip
PRODUCTS: Sequence[tuple[int, int, int]] = [
    *((1, k, n) for k, n in ((512, 1000), (1280, 1000), (768, 768), (768, 3072), (3072, 768), (256, 250), (64, 64))),
    *((16, k, n) for k, n in ((256, 256), (768, 768), (384, 1536), (100, 300), (64, 512))),
    *((128, k, n) for k, n in ((64, 64), (256, 256), (768, 192), (192, 768), (768, 768), (384, 100), (96, 1500))),
    *((197, k, n) for k, n in ((384, 384), (384, 1152), (96, 384), (768, 90), (192, 190), (64, 197))),
]
"""Rows, inputs and columns."""


COUNTS = range(64, 133, 4)
"""Channels or columns among which a step is looked for."""

TINY = 48
"""Nodes of `tiny_graph`."""

Key = tuple[str, Shape, Shape, Shape]
"""The operator of a node, the shapes of its data and of its result, and of a convolution that of its weights."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A graph of nodes to measure.

    Attributes:
        model: The graph.
        feeds: Its inputs.
        nodes: Each node with the shapes of its values.
    """

    model: bytes
    feeds: Feeds
    nodes: Mapping[Key, tuple[ir.Node, Mapping[ir.Value, Shape]]]


def key_of(operator: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Key:
    """Return what tells a node from others in a profile, which leaves out weights that were packed beforehand."""
    weights = inputs[1] if operator == "Conv" else ()
    return operator, inputs[0] if inputs else (), outputs[0] if outputs else (), weights


def graphs_of_probes() -> Iterator[tuple[str, Probe]]:
    """Yield the graphs, each with what it measures."""
    for places, channels in POINTWISE.items():
        pairs = [pair for a, b in pairwise(channels) for pair in ((a, b), (b, a))]
        yield f"convolutions of one place, {places} x {places}", _convolutions((places, b, a, 1, 1) for a, b in pairs)
    for places, channels in KERNELS.items():
        sizes = [(a, b, s) for a, b in pairwise(channels) for s in ((1, 2) if places > 7 else (1,))]
        yield f"convolutions 3 x 3, {places} x {places}", _convolutions((places, b, a, 3, s) for a, b, s in sizes)
    yield "convolutions 5 x 5", _convolutions((28, b, a, 5, 1) for a, b in pairwise((32, 64, 48, 96, 16)))
    images = ((224, 3, 2), (224, 7, 2), (160, 3, 2), (64, 3, 1), (96, 5, 2))
    yield (
        "convolutions of images",
        _convolutions((size, width, 3, kernel, stride) for size, kernel, stride in images for width in (16, 32, 64)),
    )
    by_depth = [
        (places, c, 0, k, s) for places, cs in DEPTHWISE.items() for c in cs for k, s in ((3, 1), (3, 2), (5, 1))
    ]
    yield "convolutions by depth", _convolutions(by_depth)
    yield "products of matrices", _products(PRODUCTS)
    yield "pools", _alone("MaxPool", 4, kernel_shape=[2, 2], strides=[2, 2])
    yield "single numbers", _alone("Erf", 3)
    yield "normalisations", _alone("Softmax", 3, axis=-1)
    for axis, what in ((1, "rows"), (-1, "single numbers")):
        yield f"copies of {what}", _copies(axis)


def tiny_graph() -> Probe:
    """Return a graph of nodes that take next to no time."""
    graph = _Graph()
    for _ in range(TINY):
        graph.add("Erf", (1, 4), (1, 4))
    return graph.probe()


def channel_probes() -> dict[int, Probe]:
    """Return convolutions of one place, each in a graph of its own, by their counts of channels."""
    return {count: _convolutions([(14, count, 256, 1, 1)]) for count in COUNTS}


def column_probes() -> dict[int, Probe]:
    """Return products of matrices, each in a graph of its own, by their counts of columns."""
    return {count: _products([(128, 256, count)]) for count in COUNTS}


def _convolutions(sizes: Iterable[tuple[int, int, int, int, int]]) -> Probe:
    """Of (places, outputs, inputs, kernel, stride); no inputs means by depth."""
    graph = _Graph()
    for places, outputs, inputs, kernel, stride in sizes:
        groups, extent = (1 if inputs else outputs), -(-places // stride)
        if extent**2 * outputs * max(inputs, 1) * kernel**2 > _MOST:
            continue
        pads = [(kernel - 1) // 2] * 4 if stride == 1 or kernel == 1 else [(kernel - 1) // 2] * 2 + [kernel // 2] * 2
        graph.add(
            "Conv", (1, inputs or outputs, places, places), (1, outputs, extent, extent),
            (outputs, max(inputs, 1), kernel, kernel), group=groups, strides=[stride] * 2, pads=pads,
        )  # fmt: skip
    return graph.probe()


def _products(sizes: Sequence[tuple[int, int, int]]) -> Probe:
    graph = _Graph()
    for rows, inputs, columns in sizes:
        graph.add("MatMul", (rows, inputs), (rows, columns), (inputs, columns))
    return graph.probe()


def _alone(operator: str, rank: int, **attributes: Any) -> Probe:
    """Nodes that read one value, of several sizes."""
    graph = _Graph()
    for width in (16, 64, 128):
        for length in (24, 48, 96):
            shape = (1, width, length, length)[4 - rank :]
            pooled = (1, width, length // 2, length // 2)
            graph.add(operator, shape, pooled if operator == "MaxPool" else shape, **attributes)
    return graph.probe()


def _copies(axis: int) -> Probe:
    """Half of the channels, or of the last axis, by a constant Gather."""
    graph = _Graph()
    for width in (16, 64, 128):
        for length in (24, 48, 96):
            shape = [1, width, length]
            result = [1, width, length]
            result[axis] //= 2
            graph.add("Gather", tuple(shape), tuple(result), (shape[axis], result[axis]), axis=axis)
    return graph.probe()


class _Graph:
    """A graph while it is made: nodes side by side; those of one operator that read the same shape share their data."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._feeds: dict[Shape, tuple[str, npt.NDArray[np.float32]]] = {}
        self._outputs: list[onnx.ValueInfoProto] = []
        self._measured: dict[Key, tuple[ir.Node, Mapping[ir.Value, Shape]]] = {}
        self._rng = np.random.default_rng(0)

    def add(self, operator: str, data: Shape, result: Shape, weights: Shape = (), **attributes: Any) -> None:
        """Add a node. Of a Gather `weights` are (numbers to pick from, numbers picked)."""
        name, number = self._input(data), len(self._nodes)
        names = [name]
        if weights:
            names.append(f"w{number}")
            self._constants.append(numpy_helper.from_array(self._content(operator, weights), names[1]))
        self._nodes.append(helper.make_node(operator, names, [f"y{number}"], **attributes))
        self._outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, result))
        values = [ir.Value(name=each) for each in names]
        if weights:
            values[1].const_value = ir.Tensor(np.zeros(0, np.float32), name=names[1])
        node = ir.node(operator, values, attributes=attributes)
        ir.Graph(values[:1], node.outputs, nodes=[node], initializers=values[1:])
        shapes = {values[0]: data, node.outputs[0]: result}
        if weights and operator != "Gather":
            shapes[values[1]] = weights
        self._measured[key_of(operator, [data, weights], [result])] = (node, shapes)

    def probe(self) -> Probe:
        """Return the graph as it is to be measured."""
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for shape, (n, _) in self._feeds.items()]
        graph = helper.make_graph(self._nodes, "probe", inputs, self._outputs, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return Probe(model.SerializeToString(), dict(self._feeds.values()), self._measured)

    def _input(self, shape: Shape) -> str:
        if shape not in self._feeds:
            self._feeds[shape] = f"x{len(self._feeds)}", self._rng.standard_normal(shape).astype(np.float32)
        return self._feeds[shape][0]

    def _content(self, operator: str, shape: Shape) -> npt.NDArray[Any]:
        if operator == "Gather":
            return np.sort(self._rng.permutation(shape[0])[: shape[1]]).astype(np.int64)
        return self._rng.standard_normal(shape).astype(np.float32)
