"""Computing one small node in onnx's reference implementation."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference import ops as reference_ops
from onnx_ir import serde

_OUTPUT_LIMIT = 1 << 16  # elements


def bare_node(node: ir.Node) -> onnx.NodeProto:
    """Write a node as a protobuf with plain names; graph attributes are left out."""
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
    proto.input.extend("" if v is None else f"i{i}" for i, v in enumerate(node.inputs))
    proto.output.extend(f"o{i}" for i in range(len(node.outputs)))
    for attribute in node.attributes.values():
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            proto.attribute.append(serde.serialize_attribute(attribute))
    return proto


@functools.lru_cache(maxsize=512)
def _operator(op_type: str, version: int) -> type | None:
    try:
        return reference_ops.load_op("", op_type, version)
    except Exception:
        return None


def _run_as_model(
    node: ir.Node, arrays: list[npt.NDArray[np.generic] | None], version: int
) -> Sequence[npt.NDArray[np.generic]]:
    """Run a node as a model of its own: operators that ONNX defines by others, as HardSwish and Gelu, need one."""
    proto = bare_node(node)
    feeds = {name: array for name, array in zip(proto.input, arrays, strict=True) if array is not None}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in proto.output]
    graph = helper.make_graph([proto], "node", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    return list(ReferenceEvaluator(model).run(None, feeds))


def evaluate_node(
    node: ir.Node,
    arrays: list[npt.NDArray[np.generic] | None],
    version: int,
    cost: int = 1,
    proto: onnx.NodeProto | None = None,
) -> npt.NDArray[np.generic] | None:
    """Compute the output of one small node; None where onnx has no reference for it, it fails, or is too large.
    Args:
        node: A node without subgraphs and with one output.
        arrays: Its inputs.
        version: The opset.
        cost: A bound on the number of elements it makes, where the caller knows one.
        proto: The node as `bare_node` writes it, where the caller has it.
    """
    if cost > _OUTPUT_LIMIT:
        return None
    operator = _operator(node.op_type, version)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            if operator is None:
                result = _run_as_model(node, arrays, version)
            else:
                settings = {"log": lambda *_: None, "opsets": {"": version}, "verbose": 0, "new_ops": None}
                result = operator(proto or bare_node(node), settings).run(*arrays)
    except Exception:  # the reference implementation raises whatever numpy does; not knowing is always sound
        return None
    array = result[0]
    return np.asarray(array) if isinstance(array, (np.ndarray, np.generic)) else None
