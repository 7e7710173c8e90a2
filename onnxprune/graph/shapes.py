"""Concrete shapes and shape data of every value, at two settings of the dynamic dimensions.

Instead of symbolic shapes we infer twice with different numbers in place of the dynamic dimensions: a dimension (or an
entry of a shape tensor) is *static* if both settings agree on it. With numbers everywhere, every operator's own
inference resolves. onnx infers node by node, with the data of small constant tensors at hand; values that it cannot
resolve are left out (a probing run in ONNX Runtime may fill them, see `Facts.fill`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph import contrib_shapes, reshapes
from onnxprune.graph.asked import Asked, Told, content_key
from onnxprune.graph.branches import shapes_without_past
from onnxprune.graph.dims import Sizes, dim_name, graph_inputs
from onnxprune.graph.operators import operator_of
from onnxprune.model_io.bodies import bodies

Shape = tuple[int | None, ...]

_DATA_LIMIT = 1 << 16  # elements of what is computed from shapes, and followed
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
_SAME_SHAPE = {
    "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "LayerNormalization", "SimplifiedLayerNormalization",
    "RotaryEmbedding", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "BiasAdd", "BiasSoftmax", "GroupNorm",
    "Inverse",
}  # fmt: skip
# Of domain ai.onnx: an operator that only ONNX Runtime has there, and two whose schemas infer nothing.
_SAME_SHAPE_IN_ONNX = {"SimplifiedLayerNormalization", "GroupNormalization", "MeanVarianceNormalization"}


@functools.cache
def _element_type(dtype: np.dtype[np.generic]) -> int:
    """The onnx element type of numpy's; 0 where there is none."""
    try:
        return int(ir.DataType.from_numpy(dtype))
    except (TypeError, ValueError):
        return 0


@dataclass
class Probe:
    """What is known at one setting of the dynamic dimensions.

    Attributes:
        shapes: The concrete shape of each value; ``None`` where one extent is not known.
        data: The content of small constant tensors and of what is computed from shapes alone.
        dtypes: The element type of each value.
        failures: How many nodes could not be inferred.
    """

    sizes: Sizes
    shapes: dict[ir.Value, Shape] = field(default_factory=dict)
    data: dict[ir.Value, npt.NDArray[np.generic]] = field(default_factory=dict)
    dtypes: dict[ir.Value, int] = field(default_factory=dict)
    failures: int = 0


@dataclass
class Facts:
    """Shapes and shape data of a model, seen at two settings of its dynamic dimensions."""

    first: Probe
    second: Probe

    @property
    def failures(self) -> int:
        """How many nodes contradict their inputs, over both settings."""
        return self.first.failures + self.second.failures

    def shape(self, value: ir.Value) -> Shape | None:
        """Return the shape at the first setting, or None where the rank is not known."""
        shape, other = self.first.shapes.get(value), self.second.shapes.get(value)
        return shape if shape is not None and other is not None and len(shape) == len(other) else None

    def dims(self, value: ir.Value) -> list[tuple[int | None, int | None]] | None:
        """Return (first, second) for each dimension."""
        if self.shape(value) is None:
            return None
        return list(zip(self.first.shapes[value], self.second.shapes[value], strict=True))

    def static(self, value: ir.Value, axis: int) -> bool:
        """Say whether the extent of an axis is the same at both settings."""
        a, b = self.first.shapes[value][axis], self.second.shapes[value][axis]
        return a is not None and a == b

    def data(self, value: ir.Value | None) -> npt.NDArray[np.generic] | None:
        """Return the content of a value where it is the same at both settings."""
        if value is None:
            return None
        a, b = self.first.data.get(value), self.second.data.get(value)
        if a is None or a is b:  # a constant is one array at both
            return a
        return a if b is not None and a.shape == b.shape and bool(np.array_equal(a, b)) else None

    def dtype(self, value: ir.Value) -> int:
        """Return the onnx element type, 0 where it is not known."""
        return self.first.dtypes.get(value, 0)

    def stand_in(self, new: ir.Value, old: ir.Value) -> None:
        """Know of a new value what is known of the old one, in whose place it holds the same numbers."""
        for probe in (self.first, self.second):
            stores: tuple[dict[ir.Value, Any], ...] = (probe.shapes, probe.data, probe.dtypes)
            for known in stores:
                if old in known:
                    known[new] = known[old]

    def learn(self, value: ir.Value, array: npt.NDArray[np.generic]) -> None:
        """Know of a new constant what it holds."""
        for probe in (self.first, self.second):
            probe.shapes[value], probe.data[value] = array.shape, array
            probe.dtypes[value] = int(ir.DataType.from_numpy(array.dtype))

    def known_shapes(self) -> dict[ir.Value, tuple[int, ...]]:
        """Return every fully known shape at the first setting."""
        return {v: tuple(map(int, shape)) for v, shape in self.first.shapes.items() if None not in shape}  # type: ignore[arg-type]

    def gaps(self, model: ir.Model) -> list[ir.Value]:
        """Return the outputs of main-graph nodes whose shape is not fully known."""
        values = ((v, self.shape(v)) for node in model.graph for v in node.outputs if v.name)
        return [v for v, shape in values if shape is None or None in shape]

    def fill(self, first: Mapping[ir.Value, Shape], second: Mapping[ir.Value, Shape]) -> None:
        """Add shapes measured by a run at each setting, where inference left a gap."""
        for probe, shapes in ((self.first, first), (self.second, second)):
            for value, shape in shapes.items():
                if None in probe.shapes.get(value, (None,)):
                    probe.shapes[value] = shape


def infer_at(model: ir.Model, first: Sizes, second: Sizes, asked: Asked | None = None) -> Facts:
    """Infer all shapes of a model at two given settings of its dynamic dimensions; `asked` is what is known of it."""
    asked = asked or Asked(model)
    a = probe_at(model, first, asked)
    return Facts(a, a if first == second else _Walk(model, second, asked, a).run())


def probe_at(model: ir.Model, sizes: Sizes, asked: Asked | None = None) -> Probe:
    """Infer all shapes at one setting of the dynamic dimensions."""
    return _Walk(model, sizes, asked or Asked(model)).run()


class _Walk:
    """One forward walk with concrete numbers; what is the same as at another setting is taken from there."""

    def __init__(self, model: ir.Model, sizes: Sizes, asked: Asked, other: Probe | None = None) -> None:
        self.model = model
        self.probe = Probe(sizes)
        self.asked = asked
        self.other = other.data if other is not None else {}
        self._walks = {"If": self._if, "Loop": self._loop, "Scan": self._scan}

    def run(self) -> Probe:
        for value in graph_inputs(self.model):
            if value.shape is not None and isinstance(value.type, ir.TensorType):
                shape = tuple(
                    d if isinstance(d, int) else self.probe.sizes[dim_name(value, i)] for i, d in enumerate(value.shape)
                )
                self._set(value, shape, int(value.dtype or 0))
        self._graph(self.model.graph)
        return self.probe

    def _graph(self, graph: ir.Graph) -> None:
        for value, dtype, shape, content in self.asked.constants(graph):
            self._set(value, shape, dtype)
            if content is not None:
                self.probe.data[value] = content
        for node in graph:
            self._node(node)

    def _set(self, value: ir.Value, shape: Shape, dtype: int) -> None:
        self.probe.shapes[value] = shape
        self.probe.dtypes[value] = dtype

    def _remember(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        content = self.asked.content(tensor)
        if content is not None:
            self.probe.data[value] = content

    def _node(self, node: ir.Node) -> None:
        handler = self._walks.get(node.op_type)
        if handler is not None and node.domain == "":
            handler(node)
        elif not self._evaluate(node):
            self._infer(node)

    def _evaluate(self, node: ir.Node) -> bool:
        """Compute a node's output where its inputs are known; return whether that was possible."""
        probe, data, outputs = self.probe, self.probe.data, node.outputs
        if node.domain != "" or len(outputs) != 1 or node.op_type in _RANDOM:
            return False
        out = outputs[0]
        if node.op_type == "Constant":
            tensor = ir.convenience.get_const_tensor(out)
            if tensor is None:
                return False
            self._set(out, tuple(tensor.shape.numpy()), int(tensor.dtype))
            self._remember(out, tensor)
            return True
        if node.op_type in ("Shape", "Size"):
            shape = probe.shapes.get(node.inputs[0]) if node.inputs[0] is not None else None
            if shape is None or None in shape:
                return False
            array = np.array(shape, np.int64)
            if node.op_type == "Size":
                array = np.array(array.prod(), np.int64)
            else:
                start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
                array = array[start:end]
            return self._known(out, array)
        inputs = node.inputs
        for value in inputs:
            if value is not None and value not in data:
                return False
        if not inputs or bodies(node):
            return False
        arrays = [None if v is None else data[v] for v in inputs]
        same = self.other.get(out)
        if same is not None and all(v is None or self.other.get(v) is data[v] for v in inputs):
            return self._known(out, same)
        result = self.asked.computed(node, arrays, self._output_size)
        return result is not None and self._known(out, result)

    def _output_size(self, node: ir.Node) -> int:
        """Bound what evaluating a node may cost: the number of elements it makes, where an input tells."""
        if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range", "EyeLike", "OneHot", "Pad", "Resize"):
            numbers = [self.probe.data[v] for v in node.inputs if v is not None]
            biggest = max((float(np.abs(a.astype(np.float64)).max(initial=1)) for a in numbers), default=1.0)
            if node.op_type in ("ConstantOfShape", "Expand", "Tile"):
                shape = numbers[0] if node.op_type == "ConstantOfShape" else numbers[1]
                biggest = float(np.abs(shape.astype(np.float64)).clip(1).prod()) * numbers[0].size
            return int(min(biggest, 1e18))
        return 1

    def _known(self, value: ir.Value, array: npt.NDArray[np.generic]) -> bool:
        dtype = _element_type(array.dtype)
        if not dtype:
            return False
        self._set(value, array.shape, dtype)
        if array.size <= _DATA_LIMIT:
            same = self.other.get(value)
            alike = same is array or (same is not None and content_key(same) == content_key(array))
            self.probe.data[value] = same if same is not None and alike else array
        return True

    def _infer(self, node: ir.Node) -> None:
        if self._infer_contrib(node):
            return
        if any(value is not None and not self.probe.dtypes.get(value) for value in node.inputs):
            return  # an input nobody knows: so are the outputs
        if not self.asked.has_schema(node):
            return
        settings = operator_of(node).settings
        answer = self.asked.inferred(node, [self._told(value, i in settings) for i, value in enumerate(node.inputs)])
        if answer is None or not reshapes.fits(node, self.probe.shapes, self.probe.data):
            self.probe.failures += 1
        for value, inferred in zip(node.outputs, answer or (), strict=False):
            if inferred is not None:
                self.probe.dtypes[value], shape = inferred
                if shape is not None and any(extent is not None and extent < 0 for extent in shape):
                    self.probe.failures += 1  # a kernel that is larger than what it runs over
                elif shape is not None:
                    self.probe.shapes[value] = shape

    def _infer_contrib(self, node: ir.Node) -> bool:
        """Infer an operator for which onnx has no inference; return whether it is one."""
        if not node.domain and node.op_type not in _SAME_SHAPE_IN_ONNX:
            return False
        shapes = [None if v is None else self.probe.shapes.get(v) for v in node.inputs]
        dtypes = [0 if v is None else self.probe.dtypes.get(v, 0) for v in node.inputs]
        if node.op_type in (_SAME_SHAPE if node.domain else _SAME_SHAPE_IN_ONNX):
            inferred: list[Shape | None] | None = shapes[:1]
        else:
            inferred = contrib_shapes.output_shapes(node, shapes)
        for i, (out, shape) in enumerate(zip(node.outputs, inferred or [], strict=False)):
            if shape is not None:
                self._set(out, shape, contrib_shapes.output_dtype(node, i, dtypes))
        return inferred is not None

    def _told(self, value: ir.Value | None, setting: bool) -> Told | None:
        """All of an input that inference looks at: its type, shape and content, of floats that of settings alone."""
        if value is None:
            return None
        array = self.probe.data.get(value)
        if array is not None and (array.ndim > 1 or array.size > 1024 or (array.dtype.kind == "f" and not setting)):
            array = None
        return self.probe.dtypes[value], self.probe.shapes.get(value), array

    def _if(self, node: ir.Node) -> None:
        branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
        for branch in branches:
            self._branch(branch)
        condition = self.probe.data.get(node.inputs[0]) if node.inputs[0] is not None else None
        if condition is not None and condition.size == 1:  # only one of them runs at this setting
            branches = branches[:1] if condition.any() else branches[1:]
        for i, out in enumerate(node.outputs):
            self._merge(out, [b.outputs[i] for b in branches])

    def _branch(self, branch: ir.Graph) -> None:
        """Walk a branch; where it contradicts its inputs, as it runs without a past."""
        before, shapes = self.probe.failures, self.probe.shapes
        self._graph(branch)
        if self.probe.failures > before and (shorter := shapes_without_past(self.model, branch, shapes)):
            longer, self.probe.failures = {value: shapes[value] for value in shorter}, before
            shapes.update(shorter)
            self._graph(branch)
            shapes.update(longer)

    def _loop(self, node: ir.Node) -> None:
        body = node.attributes["body"].as_graph()
        for value in body.inputs[:2]:
            self._set(value, (), int(value.dtype or (7 if value is body.inputs[0] else 9)))
        carried = node.inputs[2:]
        for outer, inner in zip(carried, body.inputs[2:], strict=False):
            self._copy(outer, inner)
        self._graph(body)
        n = len(carried)
        for i, out in enumerate(node.outputs):
            result = body.outputs[i + 1]
            if i < n:
                self._merge(out, [body.inputs[i + 2], result])
            elif (shape := self.probe.shapes.get(result)) is not None:
                self._set(out, (None, *shape), self.probe.dtypes.get(result, 0))

    def _scan(self, node: ir.Node) -> None:
        body = node.attributes["body"].as_graph()
        n_scan = node.attributes["num_scan_inputs"].as_int()
        inputs = [v for v in node.inputs if v is not None]
        n_state = len(inputs) - n_scan
        if self.model.opset_imports.get("", 1) < 9:
            return
        axes = list(node.attributes.get_ints("scan_input_axes", [0] * n_scan) or [0] * n_scan)
        length: int | None = None
        for i, (outer, inner) in enumerate(zip(inputs, body.inputs, strict=False)):
            shape = self.probe.shapes.get(outer)
            if i < n_state:
                self._copy(outer, inner)
            elif shape is not None:
                axis = axes[i - n_state] % len(shape)
                length = shape[axis]
                self._set(inner, shape[:axis] + shape[axis + 1 :], self.probe.dtypes.get(outer, 0))
        self._graph(body)
        n_out = len(node.outputs) - n_state
        out_axes = list(node.attributes.get_ints("scan_output_axes", [0] * n_out) or [0] * n_out)
        for i, out in enumerate(node.outputs):
            shape = self.probe.shapes.get(body.outputs[i])
            if shape is None:
                continue
            if i >= n_state:
                axis = out_axes[i - n_state] % (len(shape) + 1)
                shape = shape[:axis] + (length,) + shape[axis:]
            self._set(out, shape, self.probe.dtypes.get(body.outputs[i], 0))

    def _copy(self, source: ir.Value | None, target: ir.Value) -> None:
        if source is not None and source in self.probe.shapes:
            self._set(target, self.probe.shapes[source], self.probe.dtypes.get(source, 0))

    def _merge(self, out: ir.Value, sources: list[ir.Value]) -> None:
        shapes = [self.probe.shapes.get(s) for s in sources]
        if any(s is None for s in shapes) or len({len(s) for s in shapes if s is not None}) != 1:
            if sources and sources[0] in self.probe.dtypes:
                self.probe.dtypes[out] = self.probe.dtypes[sources[0]]
            return
        extents = zip(*[s for s in shapes if s is not None], strict=True)
        dims = tuple(d[0] if len(set(d)) == 1 else None for d in extents)
        self._set(out, dims, self.probe.dtypes.get(sources[0], 0))
