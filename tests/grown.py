"""Random graphs: small models grown step by step from lists of small numbers, so that hypothesis can shrink them.

``grow(kind, steps, seed)`` starts from one input, an image [n, 4, 6, 6] or a sequence [n, 5, 8], and at each step
applies one block to a tensor of the pool; what it makes joins the pool. Tensors nobody read end in contractions, so
that graph outputs do not pin what leads to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
_IR_VERSIONS = {9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 24: 11, 25: 12, 26: 13}
Step = tuple[int, int, int]
"""Which block, which tensor of the pool, which of the block's options."""


@dataclass(frozen=True)
class Tensor:
    """A value of the graph, without its batch axis: (channels, height, width) or (time, features)."""

    name: str
    shape: tuple[int, ...]


@dataclass
class Grown:
    """A graph under construction."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    pool: list[Tensor] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    weights: dict[tuple[int, ...], str] = field(default_factory=dict)
    opset: int = 23

    def add(self, op_type: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Append a node; return the names of its outputs.

        Raises:
            LookupError: The opset has no such operator, or no form of it that says this.
        """
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        given, attributes = self._spelled(op_type, list(inputs), outputs, attributes)
        self.nodes.append(helper.make_node(op_type, given, names, name=f"n{len(self.nodes)}", **attributes))
        self.read.update(inputs)
        return names

    def _spelled(
        self, op_type: str, inputs: list[str], outputs: int, attributes: dict[str, Any]
    ) -> tuple[list[str], dict[str, Any]]:
        """Inputs and attributes as the opset writes them: lists of numbers were attributes once."""
        if attributes.get("domain"):
            return inputs, attributes
        try:
            since = onnx.defs.get_schema(op_type, self.opset).since_version
        except onnx.defs.SchemaError:
            raise LookupError(op_type) from None
        if op_type in ("GroupNormalization", "Swish") and since < 21:
            raise LookupError(op_type)
        for name, last, position in _LISTS.get(op_type, ()):
            if since <= last and len(inputs) > position:
                numbers = numpy_helper.to_array(self.constants.pop(inputs[position]))
                inputs, attributes = inputs[:position], {**attributes, name: numbers.tolist()}
        if op_type == "DepthToSpace" and since < 11:
            attributes.pop("mode")
        if op_type == "Slice" and since < 10:
            raise LookupError(op_type)
        return inputs, attributes

    def one(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output; return its name."""
        return self.add(op_type, inputs, **attributes)[0]

    def constant(self, array: Any, dtype: type = np.float32) -> str:
        """Add an initializer."""
        name = f"c{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.asarray(array, dtype), name)
        return name

    def weight(self, *shape: int, shared: bool = False) -> str:
        """Add weights of a good scale; or reuse what has this shape already."""
        if shared and shape in self.weights:
            return self.weights[shape]
        scale = 1.2 / np.sqrt(max(np.prod(shape[1:]), 1)) if len(shape) > 1 else 0.5
        self.weights[shape] = self.constant(scale * self.rng.standard_normal(shape))
        return self.weights[shape]

    def ints(self, *numbers: int) -> str:
        """Add a constant list of integers."""
        return self.constant(numbers, np.int64)

    def like(self, x: Tensor) -> Tensor:
        """Another tensor of the same shape, or the same one."""
        found = [t for t in self.pool if t.shape == x.shape and t.name != x.name]
        return found[-1] if found else x


_LISTS = {
    "Unsqueeze": (("axes", 11, 1),),
    "Squeeze": (("axes", 11, 1),),
    "Split": (("split", 11, 1),),
    "ReduceMean": (("axes", 13, 1),),
    "Pad": (("pads", 2, 1),),
}
"""For operators: an attribute, the last version that has it, and the input that it became."""

Block = Callable[[Grown, Tensor, int], Tensor | list[Tensor] | None]
IMAGE: list[Block] = []
SEQUENCE: list[Block] = []


def _on(*kinds: list[Block]) -> Callable[[Block], Block]:
    def register(block: Block) -> Block:
        for kind in kinds:
            kind.append(block)
        return block

    return register


def grow(kind: list[Block], steps: Sequence[Step], seed: int, *, opset: int = 23) -> onnx.ModelProto:
    """Grow a model of one kind; blocks that the opset cannot say are left out."""
    g = Grown(np.random.default_rng(seed), opset=opset)
    shape = (4, 6, 6) if _conv in kind else (5, 8)
    g.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])]
    g.pool = [_stem(g, Tensor("x", shape))]
    for block, place, option in steps:
        x = g.pool[-1 - place % len(g.pool)]
        nodes, read, inputs = len(g.nodes), set(g.read), len(g.inputs)
        try:
            made = kind[block % len(kind)](g, x, option)
        except LookupError:
            made, g.read = None, read
            del g.nodes[nodes:], g.inputs[inputs:]
        g.pool += [made] if isinstance(made, Tensor) else made or []
    ends = [_head(g, t) for t in g.pool if t.name not in g.read]
    outputs = [helper.make_tensor_value_info(end, TensorProto.FLOAT, None) for end in ends]
    graph = helper.make_graph(g.nodes, "grown", g.inputs, outputs, list(g.constants.values()))
    opsets = [helper.make_opsetid("", opset)]
    if any(node.domain for node in g.nodes):
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSIONS.get(opset, 10))


def _stem(g: Grown, x: Tensor) -> Tensor:
    if len(x.shape) == 3:
        return Tensor(g.one("Conv", x.name, g.weight(8, 4, 1, 1), g.weight(8)), (8, *x.shape[1:]))
    return Tensor(g.one("MatMul", x.name, g.weight(8, 8)), x.shape)


def _head(g: Grown, x: Tensor) -> str:
    if len(x.shape) == 3:
        return g.one("Conv", x.name, g.weight(2, x.shape[0], 1, 1))
    return g.one("MatMul", x.name, g.weight(x.shape[1], 2))


def _axis(x: Tensor) -> int:
    """The axis of channels or features, batch counted."""
    return 1 if len(x.shape) == 3 else 2


def _width(x: Tensor) -> int:
    return x.shape[0] if len(x.shape) == 3 else x.shape[1]


def _resized(x: Tensor, name: str, width: int) -> Tensor:
    return Tensor(name, (width, *x.shape[1:]) if len(x.shape) == 3 else (x.shape[0], width))


# -- both -----------------------------------------------------------------------------------------------------------


@_on(IMAGE, SEQUENCE)
def _activation(g: Grown, x: Tensor, option: int) -> Tensor:
    kind = ("Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "LeakyRelu")[option % 6]
    return Tensor(g.one(kind, x.name), x.shape)


@_on(IMAGE, SEQUENCE)
def _sum(g: Grown, x: Tensor, option: int) -> Tensor:
    return Tensor(g.one(("Add", "Mul", "Sub")[option % 3], x.name, g.like(x).name), x.shape)


@_on(IMAGE, SEQUENCE)
def _scaled(g: Grown, x: Tensor, option: int) -> Tensor:
    width = _width(x)
    vector = g.constant(1 + 0.3 * g.rng.random((width, 1, 1) if len(x.shape) == 3 else (width,)))
    return Tensor(g.one(("Mul", "Add", "Div", "PRelu")[option % 4], x.name, vector), x.shape)


@_on(IMAGE, SEQUENCE)
def _joined(g: Grown, x: Tensor, option: int) -> Tensor | None:
    found = [t for t in g.pool if (t.shape[1:] == x.shape[1:] if len(x.shape) == 3 else t.shape[0] == x.shape[0])]
    other = found[option % len(found)]
    if _width(x) + _width(other) > 32:
        return None
    return _resized(x, g.one("Concat", x.name, other.name, axis=_axis(x)), _width(x) + _width(other))


@_on(IMAGE, SEQUENCE)
def _parted(g: Grown, x: Tensor, option: int) -> list[Tensor] | None:
    width = _width(x)
    if width < 4:
        return None
    first = 1 + option % (width - 2)
    names = g.add("Split", [x.name, g.ints(first, width - first)], 2, axis=_axis(x))
    return [_resized(x, names[0], first), _resized(x, names[1], width - first)]


@_on(IMAGE, SEQUENCE)
def _sliced(g: Grown, x: Tensor, option: int) -> Tensor | None:
    width, axis = _width(x), _axis(x)
    start, end, step = ((1, width, 1), (0, width, 2), (-1, -width - 1, -1))[option % 3]
    picked = len(range(width)[slice(start, end if step > 0 else None, step)])
    if not picked:
        return None
    return _resized(x, g.one("Slice", x.name, g.ints(start), g.ints(end), g.ints(axis), g.ints(step)), picked)


@_on(IMAGE, SEQUENCE)
def _picked(g: Grown, x: Tensor, option: int) -> Tensor:
    width = _width(x)
    chosen = g.rng.permutation(width) if option % 2 else g.rng.integers(-width, width, max(width - 1, 1))
    return _resized(x, g.one("Gather", x.name, g.constant(chosen, np.int64), axis=_axis(x)), len(chosen))


@_on(IMAGE, SEQUENCE)
def _padded(g: Grown, x: Tensor, option: int) -> Tensor | None:
    pads = [0] * (2 * (len(x.shape) + 1))
    pads[_axis(x)], pads[_axis(x) + len(x.shape) + 1] = 1, option % 3
    if _width(x) > 24:
        return None
    return _resized(x, g.one("Pad", x.name, g.ints(*pads)), _width(x) + 1 + option % 3)


@_on(IMAGE, SEQUENCE)
def _branches(g: Grown, x: Tensor, option: int) -> Tensor:
    """If with a projection in each branch; weights lie outside."""
    if not any(i.name == "flag" for i in g.inputs):
        g.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    width = _width(x)
    shape, op_type = ((width, width, 1, 1), "Conv") if len(x.shape) == 3 else ((width, width), "MatMul")
    graphs = []
    for i in range(2):
        name = f"b{len(g.nodes)}_{i}"
        if i == 1 and option % 2:
            node = helper.make_node("Relu", [x.name], [name], name=f"{name}_node")
        else:
            node = helper.make_node(op_type, [x.name, g.weight(*shape)], [name], name=f"{name}_node")
        graphs.append(
            helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
        )
    g.read.add(x.name)
    return Tensor(g.one("If", "flag", then_branch=graphs[0], else_branch=graphs[1]), x.shape)


# -- images ---------------------------------------------------------------------------------------------------------


@_on(IMAGE)
def _conv(g: Grown, x: Tensor, option: int) -> Tensor:
    divisors = [d for d in (1, 2, 4, _width(x)) if _width(x) % d == 0]
    groups = divisors[option % len(divisors)]
    width = groups * max(1, 8 // groups)
    kernel = 1 + 2 * (option % 2)
    bias = [g.weight(width)] if option % 3 else []
    w = g.weight(width, _width(x) // groups, kernel, kernel, shared=option % 5 == 0)
    name = g.add("Conv", [x.name, w, *bias], group=groups, pads=[kernel // 2] * 4)[0]
    return Tensor(name, (width, *x.shape[1:]))


@_on(IMAGE)
def _conv_bn(g: Grown, x: Tensor, option: int) -> Tensor:
    y = _conv(g, x, option)
    width = _width(y)
    stats = [
        g.constant(v) for v in (g.rng.random(width), g.rng.random(width), g.rng.random(width), 1 + g.rng.random(width))
    ]
    return Tensor(g.one("BatchNormalization", y.name, *stats), y.shape)


@_on(IMAGE)
def _conv_transpose(g: Grown, x: Tensor, option: int) -> Tensor:
    groups = 2 if option % 2 and _width(x) % 2 == 0 else 1
    w = g.weight(_width(x), 6 // groups, 1, 1)
    return Tensor(g.one("ConvTranspose", x.name, w, g.weight(6), group=groups), (6, *x.shape[1:]))


@_on(IMAGE)
def _shuffled(g: Grown, x: Tensor, option: int) -> Tensor | None:
    width, (height, side) = _width(x), x.shape[1:]
    groups = 2 + option % 2
    if width % groups:
        return None
    apart = g.one("Reshape", x.name, g.ints(0, groups, width // groups, height, side))
    turned = g.one("Transpose", apart, perm=[0, 2, 1, 3, 4])
    return Tensor(g.one("Reshape", turned, g.ints(0, width, height, side)), x.shape)


@_on(IMAGE)
def _squeeze_excite(g: Grown, x: Tensor, option: int) -> Tensor:
    pooled = g.one("ReduceMean", x.name, g.ints(2, 3)) if option % 2 else g.one("GlobalAveragePool", x.name)
    inner = g.one("Relu", g.one("Conv", pooled, g.weight(3, _width(x), 1, 1), g.weight(3)))
    gate = g.one("Sigmoid", g.one("Conv", inner, g.weight(_width(x), 3, 1, 1), g.weight(_width(x))))
    return Tensor(g.one("Mul", x.name, gate), x.shape)


@_on(IMAGE)
def _pooled(g: Grown, x: Tensor, option: int) -> Tensor:
    kind = ("MaxPool", "AveragePool")[option % 2]
    return Tensor(g.one(kind, x.name, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), x.shape)


@_on(IMAGE)
def _blocks(g: Grown, x: Tensor, option: int) -> Tensor | None:
    width, (height, side) = _width(x), x.shape[1:]
    mode = ("DCR", "CRD")[option % 2]
    if width % 4 == 0 and height < 12:
        return Tensor(g.one("DepthToSpace", x.name, blocksize=2, mode=mode), (width // 4, 2 * height, 2 * side))
    if height % 2 == 0 and width < 8:
        return Tensor(g.one("SpaceToDepth", x.name, blocksize=2), (width * 4, height // 2, side // 2))
    return None


@_on(IMAGE)
def _image_norm(g: Grown, x: Tensor, option: int) -> Tensor:
    scale, bias = g.weight(_width(x)), g.weight(_width(x))
    if option % 3 == 0:
        return Tensor(g.one("InstanceNormalization", x.name, scale, bias), x.shape)
    if option % 3 == 1:
        groups = 2 if _width(x) % 2 == 0 else 1
        return Tensor(g.one("GroupNormalization", x.name, scale, bias, num_groups=groups), x.shape)
    return Tensor(g.one("LRN", x.name, size=3), x.shape)


@_on(IMAGE)
def _global_gate(g: Grown, x: Tensor, _: int) -> Tensor:
    """Flatten into a Gemm whose result scales the channels."""
    size, width = int(np.prod(x.shape)), _width(x)
    flat = g.one("Flatten", x.name)
    gate = g.one("Gemm", flat, g.weight(width, size), g.weight(width), transB=1)
    return Tensor(g.one("Mul", x.name, g.one("Unsqueeze", gate, g.ints(2, 3))), x.shape)


# -- sequences ------------------------------------------------------------------------------------------------------


@_on(SEQUENCE)
def _linear(g: Grown, x: Tensor, option: int) -> Tensor:
    width = (8, 6, 12)[option % 3]
    y = g.one("MatMul", x.name, g.weight(_width(x), width, shared=option % 4 == 0))
    return Tensor(g.one("Add", y, g.weight(width)) if option % 2 else y, (x.shape[0], width))


@_on(SEQUENCE)
def _einsum(g: Grown, x: Tensor, option: int) -> Tensor:
    equation, shape = (("bti,io->bto", (_width(x), 6)), ("bti,oi->bto", (6, _width(x))))[option % 2]
    return Tensor(g.one("Einsum", x.name, g.weight(*shape), equation=equation), (x.shape[0], 6))


@_on(SEQUENCE)
def _norm(g: Grown, x: Tensor, option: int) -> Tensor:
    scale, bias = g.weight(_width(x)), g.weight(_width(x))
    if option % 3 == 0:
        return Tensor(g.one("RMSNormalization", x.name, scale), x.shape)
    if option % 3 == 1:
        return Tensor(g.one("Softmax", x.name, axis=-1), x.shape)
    return Tensor(g.one("LayerNormalization", x.name, scale, bias), x.shape)


@_on(SEQUENCE)
def _gated(g: Grown, x: Tensor, _: int) -> Tensor:
    gate = g.one("Sigmoid", g.one("MatMul", x.name, g.weight(_width(x), 10)))
    up = g.one("MatMul", x.name, g.weight(_width(x), 10))
    return Tensor(g.one("MatMul", g.one("Mul", gate, up), g.weight(10, _width(x))), x.shape)


@_on(SEQUENCE)
def _recurrent(g: Grown, x: Tensor, option: int) -> Tensor:
    kind, gates = (("LSTM", 4), ("GRU", 3), ("RNN", 1))[option % 3]
    directions = 1 + option // 3 % 2
    steps = g.one("Transpose", x.name, perm=[1, 0, 2])
    weights = [
        g.weight(directions, gates * 5, _width(x)),
        g.weight(directions, gates * 5, 5),
        g.weight(directions, gates * 10),
    ]
    direction = ("forward", "bidirectional")[directions - 1]
    y = g.add(kind, [steps, *weights], hidden_size=5, direction=direction)[0]
    moved = g.one("Transpose", y, perm=[2, 0, 1, 3])
    return Tensor(g.one("Reshape", moved, g.ints(0, x.shape[0], 5 * directions)), (x.shape[0], 5 * directions))


@_on(SEQUENCE)
def _attention(g: Grown, x: Tensor, option: int) -> Tensor:
    """Heads by Reshape and Transpose, from one fused projection or from three."""
    time, heads, size = x.shape[0], 2 + option % 2, 4
    wide = heads * size
    if option % 4 < 2:
        fused = g.one("MatMul", x.name, g.weight(_width(x), 3 * wide))
        parts = g.add("Split", [fused, g.ints(wide, wide, wide)], 3, axis=2)
    else:
        parts = [g.one("MatMul", x.name, g.weight(_width(x), wide)) for _ in range(3)]
    q, k, v = (g.one("Transpose", g.one("Reshape", p, g.ints(0, time, heads, size)), perm=[0, 2, 1, 3]) for p in parts)
    scores = g.one("Mul", g.one("MatMul", q, g.one("Transpose", k, perm=[0, 1, 3, 2])), g.constant(0.5))
    mixed = g.one("MatMul", g.one("Softmax", scores, axis=-1), v)
    back = g.one("Reshape", g.one("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(0, time, wide))
    return Tensor(g.one("MatMul", back, g.weight(wide, _width(x))), x.shape)


@_on(SEQUENCE)
def _fused_attention(g: Grown, x: Tensor, option: int) -> Tensor:
    heads, kv, size = ((4, 2, 4), (3, 3, 4), (4, 1, 2))[option % 3]
    q, k, v = (g.one("MatMul", x.name, g.weight(_width(x), n * size)) for n in (heads, kv, kv))
    if option % 2:
        turns = [g.constant(g.rng.random((x.shape[0], size // 2))) for _ in range(2)]
        tables = [g.one("Unsqueeze", t, g.ints(0)) for t in turns]
        batch = g.one("Concat", g.one("Shape", x.name, start=0, end=1), g.ints(x.shape[0], size // 2), axis=0)
        cos, sin = (g.one("Expand", t, batch) for t in tables)
        q = g.one("RotaryEmbedding", q, cos, sin, num_heads=heads)
        k = g.one("RotaryEmbedding", k, cos, sin, num_heads=kv)
    y = g.one("Attention", q, k, v, q_num_heads=heads, kv_num_heads=kv, is_causal=1)
    return Tensor(g.one("MatMul", y, g.weight(heads * size, _width(x))), x.shape)


@_on(SEQUENCE)
def _regrouped(g: Grown, x: Tensor, option: int) -> Tensor | None:
    """Features as a table of rows and columns, turned, and flat again."""
    time, width = x.shape
    rows = 2 + option % 3
    if width % rows:
        return None
    table = g.one("Reshape", x.name, g.ints(0, time, rows, width // rows))
    turned = g.one("Transpose", table, perm=[0, 1, 3, 2])
    return Tensor(g.one("Reshape", turned, g.ints(0, time, width)), x.shape)


@_on(SEQUENCE)
def _rotated_halves(g: Grown, x: Tensor, _: int) -> Tensor | None:
    half, left = divmod(_width(x), 2)
    if left:
        return None
    first, second = g.add("Split", [x.name, g.ints(half, half)], 2, axis=2)
    turned = g.one("Concat", g.one("Neg", second), first, axis=2)
    tables = [g.constant(g.rng.random(_width(x))) for _ in range(2)]
    return Tensor(g.one("Add", g.one("Mul", x.name, tables[0]), g.one("Mul", turned, tables[1])), x.shape)


@_on(SEQUENCE)
def _conv_over_time(g: Grown, x: Tensor, option: int) -> Tensor:
    turned = g.one("Transpose", x.name, perm=[0, 2, 1])
    groups = 2 if option % 2 and _width(x) % 2 == 0 else 1
    y = g.one("Conv", turned, g.weight(6, _width(x) // groups, 3), g.weight(6), pads=[1, 1], group=groups)
    return Tensor(g.one("Transpose", y, perm=[0, 2, 1]), (x.shape[0], 6))


@_on(SEQUENCE)
def _batch_computed(g: Grown, x: Tensor, _: int) -> Tensor:
    """A reshape whose target is computed from shapes, as exporters write it."""
    time, width = x.shape
    batch = g.one("Gather", g.one("Shape", x.name), g.constant(0, np.int64), axis=0)
    rows = g.one("Unsqueeze", batch, g.ints(0))
    flat = g.one("Reshape", x.name, g.ints(-1, width))
    y = g.one("Gemm", flat, g.weight(width, 8), g.weight(8))
    return Tensor(g.one("Reshape", y, g.one("Concat", rows, g.ints(time, 8), axis=0)), (time, 8))


@_on(SEQUENCE)
def _token_mixer(g: Grown, x: Tensor, _: int) -> Tensor:
    """A product along time: features are then rows of a MatMul."""
    turned = g.one("Transpose", x.name, perm=[0, 2, 1])
    inner = g.one("Relu", g.one("MatMul", turned, g.weight(x.shape[0], 6)))
    return Tensor(g.one("Transpose", g.one("MatMul", inner, g.weight(6, x.shape[0])), perm=[0, 2, 1]), x.shape)
