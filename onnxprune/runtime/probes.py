"""Small graphs whose nodes are measured one by one: convolutions, products, copies, what treats each number alone.

A profile of ONNX Runtime names nodes by what became of them, but tells the shapes that they read and wrote: no two
nodes of a probe have the same ones, or those that have them count as one. Convolutions lie one behind the other: what
they read and write then lies in caches, or does not, as in a real network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.hints import Feeds

Shape = tuple[int, ...]

FILTERED: Sequence[tuple[int, int, Sequence[int]]] = [
    (6, 3, (32, 16, 32, 64, 96, 160, 320)),
    (3, 5, (32, 32, 48, 80, 128, 192)),
    (12, 3, (16, 4, 8, 12, 8, 16)),
    (4, 3, (16, 12, 4, 24, 36, 48)),
]
"""Networks of blocks that expand, filter by depth and project: by how much, the kernel, and the width of each stage."""

PLAIN: Sequence[Sequence[int]] = [
    (64, 64, 128, 256, 512), (32, 48, 96, 160, 288), (16, 8, 12, 8, 12), (64, 96, 64, 128, 256)
]  # fmt: skip
"""Networks of convolutions 3 x 3 and 1 x 1: the width of each stage."""

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
    for expand, kernel, widths in FILTERED:
        yield f"convolutions by depth, {widths[0]} to {widths[-1]} channels", _filtered(expand, kernel, widths)
    for widths in PLAIN:
        yield f"convolutions, {widths[0]} to {widths[-1]} channels", _plain(widths)
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
    probes = {}
    for count in COUNTS:
        graph = _Graph()
        graph.convolve((1, 256, 14, 14), count)
        probes[count] = graph.probe()
    return probes


def column_probes() -> dict[int, Probe]:
    """Return products of matrices, each in a graph of its own, by their counts of columns."""
    return {count: _products([(128, 256, count)]) for count in COUNTS}


def _filtered(expand: int, kernel: int, widths: Sequence[int]) -> Probe:
    """A network as MobileNetV2, without shortcuts: what a layer writes, the next one reads, as in a real network."""
    graph = _Graph()
    graph.convolve((1, 3, 224, 224), widths[0], 3, stride=2)
    for number, width in enumerate(widths[1:]):
        for stride in (1 if number == 0 else 2, 1):
            inner = expand * graph.last[1]
            graph.convolve(graph.last, inner)
            graph.convolve(graph.last, inner, kernel, stride=stride, by_depth=True)
            graph.convolve(graph.last, width)
    return graph.probe()


def _plain(widths: Sequence[int]) -> Probe:
    """A network of convolutions 3 x 3 and 1 x 1."""
    graph = _Graph()
    graph.convolve((1, 3, 224, 224), widths[0], 7, stride=4)
    for number, width in enumerate(widths[1:]):
        graph.convolve(graph.last, width, 3, stride=1 if number == 0 else 2)
        graph.convolve(graph.last, width, 3)
        graph.convolve(graph.last, 4 * width)
        graph.convolve(graph.last, 2 * width)
        graph.convolve(graph.last, width, 3)
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
    """A graph while it is made: nodes side by side, or one behind the other; those side by side share their data.

    Attributes:
        last: The shape of what the last node wrote.
    """

    def __init__(self) -> None:
        self.last: Shape = ()
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._feeds: dict[Shape, tuple[str, npt.NDArray[np.float32]]] = {}
        self._outputs: list[onnx.ValueInfoProto] = []
        self._measured: dict[Key, tuple[ir.Node, Mapping[ir.Value, Shape]]] = {}
        self._rng = np.random.default_rng(0)

    def convolve(self, data: Shape, outputs: int, kernel: int = 1, *, stride: int = 1, by_depth: bool = False) -> None:
        """Add a convolution behind the last node, where that wrote this shape."""
        extent, before = -(-data[2] // stride), (kernel - 1) // 2
        after = max((extent - 1) * stride + kernel - data[2] - before, 0)
        weights = (outputs, 1 if by_depth else data[1], kernel, kernel)
        attributes = {"group": data[1] if by_depth else 1, "strides": [stride] * 2, "pads": [before] * 2 + [after] * 2}
        self.add("Conv", data, (1, outputs, extent, extent), weights, behind=data == self.last, **attributes)

    def add(
        self, operator: str, data: Shape, result: Shape, weights: Shape = (), *, behind: bool = False, **attributes: Any
    ) -> None:
        """Add a node. Of a Gather `weights` are (numbers to pick from, numbers picked)."""
        number = len(self._nodes)
        names = [self._outputs.pop().name if behind else self._input(data)]
        if weights:
            names.append(f"w{number}")
            self._constants.append(numpy_helper.from_array(self._content(operator, weights), names[1]))
        self._nodes.append(helper.make_node(operator, names, [f"y{number}"], **attributes))
        self._outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, result))
        self.last = result
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
        array = self._rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))  # numbers neither grow nor vanish
        return array.astype(np.float32)
