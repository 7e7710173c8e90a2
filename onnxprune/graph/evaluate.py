"""Computing one small node in onnx's reference implementation."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ops as reference_ops

_OUTPUT_LIMIT = 1 << 16  # elements


def bare_node(node: ir.Node) -> onnx.NodeProto:
    """Write a node as a protobuf with plain names; graph attributes are left out."""
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
    proto.input.extend("" if v is None else f"i{i}" for i, v in enumerate(node.inputs))
    proto.output.extend(f"o{i}" for i in range(len(node.outputs)))
    for attribute in node.attributes.values():
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            proto.attribute.append(ir.to_proto(attribute))
    return proto


@functools.lru_cache(maxsize=512)
def _operator(op_type: str, version: int) -> type | None:
    try:
        return reference_ops.load_op("", op_type, version)
    except Exception:
        return None


def evaluate_node(
    node: ir.Node, arrays: list[npt.NDArray[np.generic] | None], version: int, cost: int = 1
) -> npt.NDArray[np.generic] | None:
    """Compute the output of one small node; None where onnx has no reference for it, it fails, or is too large.

    Args:
        node: A node without subgraphs and with one output.
        arrays: Its inputs.
        version: The opset.
        cost: A bound on the number of elements it makes, where the caller knows one.
    """
    if cost > _OUTPUT_LIMIT:
        return None
    operator = _operator(node.op_type, version)
    if operator is None:
        return None
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            runner = operator(
                bare_node(node), {"log": lambda *_: None, "opsets": {"": version}, "verbose": 0, "new_ops": None}
            )
            result = runner.run(*arrays)
    except Exception:  # the reference implementation raises whatever numpy does; not knowing is always sound
        return None
    array = result[0]
    return np.asarray(array) if isinstance(array, (np.ndarray, np.generic)) else None
