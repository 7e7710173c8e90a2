"""Calibration statistics, gathered inside ONNX Runtime: reductions are added to the graph, and only sums come out.

    shadow(dense, pruned)          both models as one graph over the same inputs, values of `dense` behind a prefix
    layer_moments(joined, ...)     for each contraction Z = A W^T + b: sums, A^T A and A^T Z, by fold of the inputs
    channel_moments(model, ...)    for values: sums, squares, magnitudes and zeros by index of an axis
    output_error(joined, ...)      how far the two models' outputs are apart

A is [rows, K]: for a MatMul one row a token, for a Conv one row a window (im2col, by a Conv with an identity kernel).
Large feature maps are sampled on a regular grid of windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxprune.graph.hints import Feeds
from onnxprune.graph.linear import Linear, Matrix
from onnxprune.graph.measuring import Builder
from onnxprune.model_io.bodies import graphs_of
from onnxprune.runtime.probe import concrete_shapes
from onnxprune.runtime.session import make_session, run

DENSE = "dense::"


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the rows of one contraction's inputs A [g, rows, K] and targets Z [g, rows, O].

    Attributes:
        rows: How many.
        a, z: Sums, shapes [g, K] and [g, O].
        aa: A^T A, shape [g, K, K].
        az: A^T Z, shape [g, K, O].
        zz: Sums of Z^2, shape [g, O].
    """

    rows: float
    a: Matrix
    z: Matrix
    aa: Matrix
    az: Matrix
    zz: Matrix

    def of(self, outputs: npt.NDArray[np.int64] | slice) -> Moments:
        """Those of some outputs."""
        return Moments(self.rows, self.a, self.z[:, outputs], self.aa, self.az[:, :, outputs], self.zz[:, outputs])

    def mapped(self, factor: Matrix, offset: Matrix) -> Moments:
        """Those with factor * Z + offset in the place of Z; both of shape [g, O]."""
        if (factor == 1).all() and not offset.any():
            return self
        z = factor * self.z + self.rows * offset
        az = self.az * factor[:, None, :] + self.a[:, :, None] * offset[:, None, :]
        zz = factor**2 * self.zz + 2 * factor * offset * self.z + self.rows * offset**2
        return Moments(self.rows, self.a, z, self.aa, az, zz)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.rows + other.rows, self.a + other.a, self.z + other.z,
            self.aa + other.aa, self.az + other.az, self.zz + other.zz,
        )  # fmt: skip

    def __sub__(self, other: Moments) -> Moments:
        return Moments(
            self.rows - other.rows, self.a - other.a, self.z - other.z,
            self.aa - other.aa, self.az - other.az, self.zz - other.zz,
        )  # fmt: skip


def shadow(dense: ir.Model, pruned: ir.Model) -> ir.Model:
    """Join two models with the same inputs into one graph; all values of `dense` are named behind `DENSE`."""
    joined, other = pruned.clone(), dense.clone()
    inputs = {v.name: v for v in joined.graph.inputs}
    for value in list(other.graph.inputs):
        if value.name in inputs and not value.is_initializer():
            value.replace_all_uses_with(inputs[value.name])
    other.graph.inputs.clear()  # old models list initializers among them
    for graph in graphs_of(other):
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is not None:  # a tensor of its own: renaming a value renames its tensor, which clones share
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=f"{DENSE}{value.name}")
            value.name = f"{DENSE}{value.name}"
        for node in graph:
            node.name = f"{DENSE}{node.name}" if node.name else node.name
            for out in node.outputs:
                out.name = f"{DENSE}{out.name}" if out.name else out.name
    for value in list(other.graph.initializers.values()):
        del other.graph.initializers[str(value.name)]
        joined.graph.register_initializer(value)
    nodes = list(other.graph)
    other.graph.outputs.clear()
    other.graph.remove(nodes)
    joined.graph.extend(nodes)
    for domain, version in other.opset_imports.items():
        joined.graph.opset_imports.setdefault(domain, version)
    return joined


def layer_moments(
    joined: ir.Model,
    layers: Sequence[Linear],
    kept: Mapping[str, npt.NDArray[np.int64]],
    feeds: Sequence[Feeds],
    *,
    folds: int = 4,
    windows: int = 256,
    targets: bool = True,
) -> dict[str, list[Moments]]:
    """Gather the moments of several layers in one pass.

    Args:
        joined: From `shadow`, or a model on its own where no targets are wanted.
        layers: Layers of the pruned model.
        kept: By weight name, the output indices of the dense layer that the pruned one still has.
        feeds: Batches; batch i belongs to fold i modulo `folds`.
        folds: Into how many parts the inputs are divided.
        windows: Largest number of windows of one sample that a Conv's statistics look at.
        targets: Whether Z is that of the dense model; else Z is the layer's own output.

    Returns:
        By weight name, the moments of each fold.
    """
    model = joined.clone()
    shapes = concrete_shapes(model, feeds[0], list(_values(model, [str(x.output.name) for x in layers])))
    by_name = {str(v.name): shape for v, shape in shapes.items()}
    build = Builder(model)
    model.graph.outputs.clear()
    for number, layer in enumerate(layers):
        shape = by_name.get(str(layer.output.name), ())
        grid = Grid(_stride(shape, windows) if layer.is_conv else 1, len(shape))
        _add_moments(build, layer, number, kept.get(layer.name), grid, DENSE if targets else "")
    RemoveUnusedNodesPass()(model)
    session = make_session(model)
    sums: dict[str, list[Moments | None]] = {x.name: [None] * min(folds, len(feeds)) for x in layers}
    for i, feed in enumerate(feeds):
        outputs = run(session, feed)
        for number, layer in enumerate(layers):
            new = _read(outputs, number)
            old = sums[layer.name][i % folds]
            sums[layer.name][i % folds] = new if old is None else old + new
    return {name: [m for m in parts if m is not None] for name, parts in sums.items()}


def output_error(joined: ir.Model, feeds: Sequence[Feeds], outputs: Sequence[str]) -> float:
    """The squared difference of both models' float outputs over the squares of the dense ones, the worst output's."""
    model = joined.clone()
    build = Builder(model)
    values = {str(v.name): v for v in _values(model, [n for name in outputs for n in (name, DENSE + name)])}
    model.graph.outputs.clear()
    used = []
    for number, name in enumerate(outputs):
        ours, dense = values.get(name), values.get(DENSE + name)
        if ours is None or dense is None or not (ours.dtype or ir.DataType.FLOAT).is_floating_point():
            continue
        ours, dense = build.cast(ours), build.cast(dense)
        gap = build.node("Sub", [ours, dense])
        build.output(build.total(build.node("Mul", [gap, gap])), f"gap{number}")
        build.output(build.total(build.node("Mul", [dense, dense])), f"size{number}")
        used.append(number)
    if not used:
        return 0.0
    RemoveUnusedNodesPass()(model)
    session = make_session(model)
    sums = np.zeros((2, len(used)))
    for feed in feeds:
        results = run(session, feed)
        sums += [[float(np.asarray(results[f"{part}{n}"]).sum()) for n in used] for part in ("gap", "size")]
    return float(np.max(sums[0] / np.maximum(sums[1], np.finfo(np.float64).tiny)))


Place = tuple[str, int]
"""The name of a value of the main graph, and an axis >= 0."""


@dataclass(frozen=True, eq=False)
class ChannelMoments:
    """Sums over everything but one axis of a value; arrays have that axis' extent.

    Attributes:
        count: Elements summed for each index.
        total: Of x.
        squares: Of x^2.
        magnitudes: Of |x|.
        zeros: How often x <= 0.
    """

    count: float
    total: Matrix
    squares: Matrix
    magnitudes: Matrix
    zeros: Matrix

    @property
    def mean_square(self) -> Matrix:
        """E[x^2]."""
        return self.squares / self.count

    @property
    def mean_magnitude(self) -> Matrix:
        """E|x|."""
        return self.magnitudes / self.count

    @property
    def zero_share(self) -> Matrix:
        """How often x is zero or less: APoZ behind a ReLU."""
        return self.zeros / self.count

    @property
    def variance(self) -> Matrix:
        """Var[x]."""
        return np.maximum(self.squares / self.count - np.square(self.total / self.count), 0.0)


def channel_moments(model: ir.Model, places: Sequence[Place], feeds: Sequence[Feeds]) -> dict[Place, ChannelMoments]:
    """Sums of values of the main graph over all axes but one, for each place; one pass."""
    copy = model.clone()
    build = Builder(copy)
    values = {str(v.name): v for v in _values(copy, [name for name, _ in places])}
    ranks = {str(v.name): len(s) for v, s in concrete_shapes(copy, feeds[0], values.values()).items()}
    copy.graph.outputs.clear()
    usable = [p for p in places if p[0] in values and ranks.get(p[0], 0) > p[1]]
    sums = ChannelSums(build, {place: (values[place[0]], ranks[place[0]]) for place in usable})
    RemoveUnusedNodesPass()(copy)
    session = make_session(copy)
    for feed in feeds:
        sums.add(run(session, feed))
    return sums.moments()


class ChannelSums:
    """Sums over everything but one axis of some values, made in the graph and added up batch by batch.

    Args:
        build: Adds them to a graph, as outputs.
        values: By place (name, axis), the value in that graph and its rank.
    """

    _PARTS = ("count", "total", "squares", "magnitudes", "zeros")

    def __init__(self, build: Builder, values: Mapping[Place, tuple[ir.Value, int]]) -> None:
        self._places = list(values)
        self._sums: dict[Place, dict[str, Matrix]] = {}
        for number, ((_, axis), (value, rank)) in enumerate(values.items()):
            x = build.cast(value)
            zero = build.constant(np.zeros((), np.float32))
            parts = {
                "count": build.cast(build.node("Not", [build.node("Less", [x, x])])),
                "total": x,
                "squares": build.node("Mul", [x, x]),
                "magnitudes": build.node("Abs", [x]),
                "zeros": build.cast(build.node("Not", [build.node("Greater", [x, zero])])),
            }
            others = [i for i in range(rank) if i != axis]
            for part, summed in parts.items():
                build.output(build.total(summed, others), self._name(part, number))

    @staticmethod
    def _name(part: str, number: int) -> str:
        return f"sums::{part}{number}"

    def add(self, outputs: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Add what the graph gives for a batch."""
        for number, place in enumerate(self._places):
            totals = self._sums.setdefault(place, {})
            for part in self._PARTS:
                new = np.asarray(outputs[self._name(part, number)], np.float64)
                totals[part] = totals.get(part, np.zeros(())) + new

    def moments(self) -> dict[Place, ChannelMoments]:
        """Return the sums so far."""
        return {
            p: ChannelMoments(float(s["count"].reshape(-1)[0]), s["total"], s["squares"], s["magnitudes"], s["zeros"])
            for p, s in self._sums.items()
        }


def row_cosines(model: ir.Model, pairs: Sequence[tuple[str, str]], feeds: Sequence[Feeds]) -> Matrix:
    """The mean over samples of the cosine between two values of the main graph, for each pair of names; one pass.

    A sample is an index of the first axis; all that it holds is one vector. Vectors of length 0 have the cosine 1 with
    each other and 0 with all else.
    """
    copy = model.clone()
    build = Builder(copy)
    values = {str(v.name): v for v in _values(copy, [name for pair in pairs for name in pair])}
    copy.graph.outputs.clear()
    for number, (first, second) in enumerate(pairs):
        a, b = (build.reshape(build.cast(values[name]), [0, -1]) for name in (first, second))
        for part, (x, y) in {"ab": (a, b), "aa": (a, a), "bb": (b, b)}.items():
            build.output(build.total(build.node("Mul", [x, y]), [1]), f"{part}{number}")
    RemoveUnusedNodesPass()(copy)
    session = make_session(copy)
    sums, count = np.zeros(len(pairs)), 0
    for feed in feeds:
        outputs = {name: np.asarray(array, np.float64) for name, array in run(session, feed).items()}
        for number in range(len(pairs)):
            ab, aa, bb = (outputs[f"{part}{number}"] for part in ("ab", "aa", "bb"))
            size = np.sqrt(aa * bb)
            cosine = np.divide(ab, size, out=(aa == bb).astype(np.float64), where=size > 0)
            sums[number] += cosine.sum()
        count += len(ab) if pairs else 0
    return np.asarray(sums / max(count, 1))


# -- inside the graph -----------------------------------------------------------------------------------------------


def _values(model: ir.Model, names: Sequence[str]) -> Iterator[ir.Value]:
    wanted = set(names)
    for value in model.graph.inputs:
        if value.name in wanted:
            yield value
    for node in model.graph:
        for out in node.outputs:
            if out.name in wanted:
                yield out


@dataclass(frozen=True)
class Grid:
    """The places of a layer's output that are looked at: every how many, and of how many axes."""

    stride: int
    rank: int


def _stride(shape: Sequence[int], windows: int) -> int:
    """The step of the grid on which windows are looked at, for an output [N, O, *spatial]."""
    spatial = list(shape[2:])
    if not spatial:
        return 1
    step: float = (math.prod(spatial) / windows) ** (1 / len(spatial))
    return max(1, math.ceil(step))


def _add_moments(
    build: Builder, layer: Linear, number: int, kept: npt.NDArray[np.int64] | None, grid: Grid, prefix: str
) -> None:
    node = build.by_output[str(layer.output.name)]
    data = node.inputs[layer.slot.data]
    assert data is not None
    target = build.before_activation(prefix + str(layer.output.name))
    if kept is not None and prefix:
        target = build.node("Gather", [target, build.constant(kept)], {"axis": layer.result_axis})
    groups, width, summed = (int(n) for n in layer.matrix().shape)
    if layer.is_conv:
        a = build.unfold(node, layer.weight, groups, summed, grid.stride)
        z = build.rows_of_map(target, groups, width, grid.stride, grid.rank - 2)
    else:
        a = build.rows(data, summed, layer.data_axis, grid.rank)
        z = build.rows(target, width, layer.result_axis, grid.rank)
    transposed = build.node("Transpose", [a], {"perm": [0, 2, 1]})
    build.output(build.node("MatMul", [transposed, a]), f"aa{number}")
    build.output(build.node("MatMul", [transposed, z]), f"az{number}")
    build.output(build.total(a, [1]), f"a{number}")
    build.output(build.total(z, [1]), f"z{number}")
    build.output(build.total(build.node("Mul", [z, z]), [1]), f"zz{number}")
    build.output(build.node("Shape", [z]), f"rows{number}", ir.DataType.INT64)


def _read(outputs: Mapping[str, npt.NDArray[np.generic]], number: int) -> Moments:
    a, z, aa, az, zz = (np.asarray(outputs[f"{part}{number}"], np.float64) for part in ("a", "z", "aa", "az", "zz"))
    return Moments(float(np.asarray(outputs[f"rows{number}"])[1]), a, z, aa, az, zz)
