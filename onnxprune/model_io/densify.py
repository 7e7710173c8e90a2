"""Look at the protobuf before onnx-ir does: it drops sparse initializers and training information in silence.

Sparse tensors become dense ones of the same name and value; training information is refused by name, since the
graphs in it would no longer fit a pruned model.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model_io import protobuf
from onnxprune.model_io.external import byte_size
from onnxprune.model_io.limits import Limits


def refuse_training_info(proto: onnx.ModelProto, name: str) -> None:
    """Refuse a model that carries training information.

    Raises:
        ModelError: Names the model and the training graphs in it.
    """
    if proto.training_info:
        graphs = [info.algorithm.name or info.initialization.name or "unnamed" for info in proto.training_info]
        listed = ", ".join(f"'{graph}'" for graph in graphs)
        raise ModelError(
            f"'{name}' carries training_info ({listed}), which would no longer fit the pruned model: "
            "remove it first (del model.training_info[:])."
        )


def make_dense(parts: protobuf.Parts, limits: Limits) -> int:
    """Turn sparse initializers and the sparse_value of Constant nodes into dense tensors, in place.

    Returns:
        How many tensors were changed.

    Raises:
        ModelError: A sparse tensor is malformed or larger than `limits.max_dense_bytes`, or is an attribute of an
            operator other than Constant.
    """
    changed = 0
    for graph in parts.graphs:
        for sparse in graph.sparse_initializer:
            graph.initializer.append(dense_tensor(sparse, limits))
            changed += 1
        graph.ClearField("sparse_initializer")
    for node, attribute in parts.sparse_attributes:
        if node.op_type != "Constant" or attribute.name != "sparse_value":
            raise ModelError(
                f"node '{node.name}' ({node.op_type}) has the sparse attribute '{attribute.name}', "
                "which is not supported."
            )
        dense = dense_tensor(attribute.sparse_tensor, limits)
        attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
        changed += 1
    return changed


def dense_tensor(sparse: onnx.SparseTensorProto, limits: Limits) -> onnx.TensorProto:
    """The dense tensor of the same name, shape, element type and values.

    Indices are either linear, shape [nnz], or coordinates, shape [nnz, rank] (onnx.proto, SparseTensorProto).
    """
    name = sparse.values.name
    shape = tuple(sparse.dims)
    frame = onnx.TensorProto(name=name, data_type=sparse.values.data_type, dims=shape)
    if byte_size(frame) > limits.max_dense_bytes:
        raise ModelError(f"sparse tensor '{name}' would take {byte_size(frame):,} bytes when made dense.")
    try:
        values = numpy_helper.to_array(sparse.values).reshape(-1)
        indices = numpy_helper.to_array(sparse.indices).astype(np.int64)
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
        dense = np.zeros(math.prod(shape), dtype=values.dtype)
        if flat.size != values.size or (flat.size and flat.min() < 0):
            raise ValueError("its indices do not fit its values")
        dense[flat] = values
        tensor = numpy_helper.from_array(dense.reshape(shape), name)
    except (ValueError, IndexError, TypeError) as error:
        raise ModelError(f"sparse tensor '{name}' is malformed: {error}.") from error
    tensor.doc_string = sparse.values.doc_string
    return tensor
