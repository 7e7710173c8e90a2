"""Reading and editing constants without holding a large model in memory.

Weights kept in external data are mapped from disk. They are copied out one at a time and unmapped again; an edit of one
is done anew whenever somebody reads the result, so that a model of any size passes through in the space of one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[np.generic]


def is_constant(value: ir.Value) -> bool:
    """Return whether a value is a constant of the graph that no caller can give other numbers."""
    return value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def read(tensor: ir.TensorProtocol) -> Array:
    """Return a tensor's content; of one in external data a copy, and the file is unmapped."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    array = np.array(tensor.numpy())
    try:
        tensor.release()
    except BufferError:  # somebody else still looks at it
        tensor.raw = None
    return array


def like(tensor: ir.TensorProtocol, array: Array) -> ir.Tensor:
    """Return a tensor with other numbers and all else that is written with it: type, name, comment, metadata."""
    return ir.Tensor(
        array,
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def numbers_of(model: ir.Model) -> dict[str, ir.TensorProtocol | None]:
    """The tensors of a model's constants as they are now, by name; see `put_back`."""
    return {name: value.const_value for name, value in model.graph.initializers.items()}


def put_back(model: ir.Model, numbers: Mapping[str, ir.TensorProtocol | None]) -> None:
    """Give constants the tensors that they had when `numbers_of` looked."""
    for name, tensor in numbers.items():
        model.graph.initializers[name].const_value = tensor


def edited(tensor: ir.TensorProtocol, edit: Callable[[Array], Array], shape: Sequence[int]) -> ir.TensorProtocol:
    """Return the tensor that ``edit`` makes of another: at once, or whenever it is read for one in external data.

    Args:
        tensor: The original. It is not changed, and ``edit`` must not change the array it is given.
        edit: From content to content.
        shape: Of the result.
    """

    def make() -> ir.Tensor:
        return like(tensor, np.asarray(edit(read(tensor)), order="C"))

    if isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor)):
        return ir.LazyTensor(
            make,
            dtype=tensor.dtype,
            shape=ir.Shape(shape),
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
    return make()


def spread(points: Array, shape: Sequence[int], axis: int) -> Array:
    """Return zero points at each element of what they belong to.

    Args:
        points: One for all, one for each index of an axis, or one for each block of it.
        shape: Of what they belong to.
        axis: That axis, which may be negative.
    """
    if points.size == 1:
        return np.broadcast_to(points.reshape(()), shape)
    if points.ndim == 1:
        points = points.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    elif points.shape != tuple(shape):
        extent = shape[axis]
        points = np.repeat(points, -(-extent // points.shape[axis]), axis=axis).take(range(extent), axis=axis)
    return np.broadcast_to(points, shape)
