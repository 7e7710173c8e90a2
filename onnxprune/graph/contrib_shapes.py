"""Output shapes of ONNX Runtime's contrib operators, which onnx's own inference does not know.

``output_shapes(node, shapes)`` gives one shape for each output of a ``com.microsoft`` node from the concrete shapes of
its inputs, None where it has nothing to say. Element types are those of the input that `dtype_source` names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import serde

Shape = tuple[int | None, ...]
Shapes = Sequence[Shape | None]
Infer = Callable[[ir.Node, Shapes], list[Shape | None]]

_INFER: dict[str, Infer] = {}

# Operators that are a standard operator on some of their inputs, with those inputs.
_STAND_INS = {
    "FusedConv": ("Conv", (0, 1)),
    "QLinearConv": ("Conv", (0, 3)),
    "FusedGemm": ("Gemm", (0, 1)),
    "GemmFloat8": ("Gemm", (0, 1)),
    "QGemm": ("Gemm", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "MatMulInteger16": ("MatMul", (0, 1)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
}
_STAND_IN_ATTRIBUTES = {
    "auto_pad", "dilations", "group", "kernel_shape", "pads", "strides", "transA", "transB", "ceil_mode",
}  # fmt: skip

# The input whose element type the output has, where that is not input 0 (None: 32-bit integers).
_DTYPE_SOURCES: dict[str, int | None] = {
    "DynamicQuantizeMatMul": 0, "MatMulIntegerToFloat": 2, "MatMulInteger16": None, "QLinearConcat": 2,
    "QLinearWhere": 1, "EmbedLayerNormalization": 2, "GatherBlockQuantized": 2, "QuantizeLinear": 2,
    "DequantizeLinear": 1,
}  # fmt: skip


def output_shapes(node: ir.Node, shapes: Shapes) -> list[Shape | None] | None:
    """Return the shape of each output of a contrib node, None where this module does not know the operator."""
    function = _INFER.get(node.op_type)
    if node.domain != "com.microsoft" or node.attributes.get_int("channels_last", 0) != 0:
        return None
    try:
        if function is not None:
            return function(node, shapes)
        if node.op_type in _STAND_INS:
            return _stand_in(node, shapes)
    except (IndexError, TypeError, ValueError, ZeroDivisionError, onnx.shape_inference.InferenceError):
        return None  # inputs of a rank or shape that the operator does not take, or that is not known
    return None


def output_dtype(node: ir.Node, i: int, dtypes: Sequence[int]) -> int:
    """Return the element type of output ``i`` of a contrib node, given those of its inputs."""
    if node.op_type == "EmbedLayerNormalization" and i == 1:
        return int(ir.DataType.INT32)
    if node.op_type == "QLinearConv":
        return dtypes[7]
    if node.op_type == "QGemm":
        return dtypes[8] if len(dtypes) > 8 and dtypes[8] else int(ir.DataType.FLOAT)
    source = _DTYPE_SOURCES.get(node.op_type, 0)
    return int(ir.DataType.INT32) if source is None else dtypes[source]


def _shapes_of(*operators: str) -> Callable[[Infer], Infer]:
    def register(function: Infer) -> Infer:
        _INFER.update(dict.fromkeys(operators, function))
        return function

    return register


def _stand_in(node: ir.Node, shapes: Shapes) -> list[Shape | None]:
    """Let onnx infer the standard operator that a contrib operator extends."""
    op_type, operands = _STAND_INS[node.op_type]
    proto = onnx.NodeProto(op_type=op_type)
    proto.output.append("o")
    types = {}
    for i in operands:
        proto.input.append(f"i{i}")
        types[f"i{i}"] = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, shapes[i])
    proto.attribute.extend(
        serde.serialize_attribute(a) for a in node.attributes.values() if a.name in _STAND_IN_ATTRIBUTES
    )
    schema = onnx.defs.get_schema(op_type, 20)
    inferred = onnx.shape_inference.infer_node_outputs(
        schema, proto, types, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    dims = inferred["o"].tensor_type.shape.dim
    return [tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)]


def _broadcast(shapes: Shapes) -> Shape:
    known = [[1 if n is None else n for n in s] for s in shapes if s is not None]
    return tuple(int(n) for n in np.broadcast_shapes(*(tuple(s) for s in known)))


def _matmul(a: Shape, b: Shape) -> Shape:
    return (*_broadcast([a[:-2], b[:-2]]), a[-2], b[-1])


# -- quantised and fused --------------------------------------------------------------------------------------------


@_shapes_of("QuantizeLinear", "DequantizeLinear", "MoE", "QMoE")
def _same(_: ir.Node, shapes: Shapes) -> list[Shape | None]:
    return [shapes[0]]


@_shapes_of("QLinearAdd", "QLinearMul")
def _binary(_: ir.Node, shapes: Shapes) -> list[Shape | None]:
    return [_broadcast([shapes[0], shapes[3]])]


@_shapes_of("QLinearWhere")
def _where(_: ir.Node, shapes: Shapes) -> list[Shape | None]:
    return [_broadcast([shapes[0], shapes[1], shapes[4]])]


@_shapes_of("QLinearConcat")
def _concat(node: ir.Node, shapes: Shapes) -> list[Shape | None]:
    pieces = [list(s) for s in shapes[2::3] if s is not None]
    axis = node.attributes["axis"].as_int()
    out = list(pieces[0])
    out[axis] = sum(p[axis] or 0 for p in pieces)
    return [tuple(out)]


@_shapes_of("QLinearReduceMean")
def _reduce(node: ir.Node, shapes: Shapes) -> list[Shape | None]:
    x = shapes[0] or ()
    gone = {int(a) % len(x) for a in node.attributes.get_ints("axes", None) or range(len(x))}
    keep = bool(node.attributes.get_int("keepdims", 1))
    return [tuple(1 if i in gone else n for i, n in enumerate(x) if keep or i not in gone)]


@_shapes_of("FusedMatMul", "TransposeMatMul")
def _fused_matmul(node: ir.Node, shapes: Shapes) -> list[Shape | None]:
    if node.attributes.get_int("transBatchA", 0) or node.attributes.get_int("transBatchB", 0):
        return [None]
    a, b = shapes[0] or (), shapes[1] or ()
    if len(a) < 2 or len(b) < 2:
        return [None]
    if node.attributes.get_int("transA", 0):
        a = (*a[:-2], a[-1], a[-2])
    if node.attributes.get_int("transB", 0):
        b = (*b[:-2], b[-1], b[-2])
    return [_matmul(a, b)]


@_shapes_of("MatMulNBits", "MatMulBnb4", "MatMulFpQ4")
def _packed_matmul(node: ir.Node, shapes: Shapes) -> list[Shape | None]:
    x = shapes[0]
    return [None if x is None or "N" not in node.attributes else (*x[:-1], node.attributes["N"].as_int())]


@_shapes_of("GatherBlockQuantized")
def _packed_gather(node: ir.Node, shapes: Shapes) -> list[Shape | None]:
    """Rows of a table in blocks; two numbers of four bits may lie in one byte, which the number of blocks tells."""
    table, indices, scales = shapes[0] or (), shapes[1] or (), shapes[2] or ()
    gathered, packed = (node.attributes.get_int(name, default) % len(table)
                        for name, default in (("gather_axis", 0), ("quantize_axis", 1)))  # fmt: skip
    block, width = node.attributes.get_int("block_size", 128), int(table[packed] or 0)
    fits = [n for n in (width, 2 * width, 4 * width) if -(-n // block) == scales[packed]]
    if len(fits) != 1:
        return [None]
    full = [fits[0] if i == packed else n for i, n in enumerate(table)]
    return [(*full[:gathered], *indices, *full[gathered + 1 :])]


# -- normalisation --------------------------------------------------------------------------------------------------


@_shapes_of("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def _skip_norm(_: ir.Node, shapes: Shapes) -> list[Shape | None]:
    x = shapes[0]
    return [None] * 4 if x is None else [x, (*x[:-1], 1), (*x[:-1], 1), x]


@_shapes_of("EmbedLayerNormalization")
def _embed_norm(_: ir.Node, shapes: Shapes) -> list[Shape | None]:
    batch, length = shapes[0] or ()
    full = (batch, length, (shapes[2] or ())[1])
    return [full, (batch,), full]


# -- attention ------------------------------------------------------------------------------------------------------


@_shapes_of("MultiHeadAttention")
def _multi_head(node: ir.Node, shapes: Shapes) -> list[Shape | None]:
    heads = node.attributes["num_heads"].as_int()
    q = shapes[0] or ()
    k, v = shapes[1] if len(shapes) > 1 else None, shapes[2] if len(shapes) > 2 else None
    hidden = int(q[2] or 0) * (int(q[4] or 0) if len(q) == 5 else 1)
    if v is not None:
        hidden = int(v[2] or 0) if len(v) == 3 else heads * int(v[3] or 0)
        length = v[1] if len(v) == 3 else v[2]
    else:
        length = (k or q)[1]
    qk_size = int(q[4] or 0) if len(q) == 5 else int(q[2] or 0) // heads
    past = shapes[6] if len(shapes) > 6 else None
    total = None if length is None else length + int((past or (0, 0, 0))[2] or 0)
    keys = (q[0], heads, total, qk_size)
    return [(q[0], q[1], hidden), keys, (*keys[:3], hidden // heads), (q[0], heads, q[1], total)]


@_shapes_of("Attention")
def _packed_attention(node: ir.Node, shapes: Shapes) -> list[Shape | None]:
    x, w = shapes[0] or (), shapes[1] or ()
    heads = node.attributes["num_heads"].as_int()
    sizes = node.attributes.get_ints("qkv_hidden_sizes", None) or [int(w[1] or 0) // 3] * 3
    past = shapes[4] if len(shapes) > 4 else None
    total = None if x[1] is None else x[1] + int((past or (0, 0, 0, 0))[3] or 0)
    return [(x[0], x[1], int(sizes[2])), (2, x[0], heads, total, int(sizes[2]) // heads)]


@_shapes_of("GroupQueryAttention")
def _grouped(node: ir.Node, shapes: Shapes) -> list[Shape | None]:
    q, k = shapes[0] or (), shapes[1] if len(shapes) > 1 else None
    heads, kv = node.attributes["num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    size = int(q[2] or 0) // (heads if k is not None else heads + 2 * kv)
    cache = (q[0], kv, None, size)
    return [(q[0], q[1], heads * size), cache, cache, (q[0], heads, q[1], None)]


@_shapes_of("LinearAttention")
def _linear_attention(node: ir.Node, shapes: Shapes) -> list[Shape | None]:
    q, v = shapes[0] or (), shapes[2] or ()
    heads, kv = node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    if node.attributes.get_int("state_window", 0):
        return [None, None]
    size = int(v[2] or 0) // kv
    return [(q[0], q[1], max(heads, kv) * size), (q[0], kv, int(q[2] or 0) // heads, size)]


@_shapes_of("CausalConvWithState")
def _causal_conv(node: ir.Node, shapes: Shapes) -> list[Shape | None]:
    x, w = shapes[0] or (), shapes[1] or ()
    unknown = ("state_window", "state_length", "input_channels")
    if node.attributes.get_int("ndim", 1) != 1 or any(node.attributes.get_int(name, 0) for name in unknown):
        return [None, None]
    state = (int(w[2] or 1) - 1) * node.attributes.get_int("dilation", 1)
    return [x, (x[0], x[1], state)]
