"""ONNX data types and tensors in PyTorch's terms.

PyTorch has no usable types below a byte, so those live in the next type that holds their values exactly:
int4/int2 in int8, uint4/uint2 in uint8, float4e2m1 in float16. The ONNX type is remembered where it matters.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from onnxprune.errors import ModelError

TYPES = ir.DataType

_TORCH: dict[ir.DataType, torch.dtype] = {
    TYPES.FLOAT: torch.float32,
    TYPES.DOUBLE: torch.float64,
    TYPES.FLOAT16: torch.float16,
    TYPES.BFLOAT16: torch.bfloat16,
    TYPES.INT8: torch.int8,
    TYPES.INT16: torch.int16,
    TYPES.INT32: torch.int32,
    TYPES.INT64: torch.int64,
    TYPES.UINT8: torch.uint8,
    TYPES.UINT16: torch.uint16,
    TYPES.UINT32: torch.uint32,
    TYPES.UINT64: torch.uint64,
    TYPES.BOOL: torch.bool,
    TYPES.COMPLEX64: torch.complex64,
    TYPES.COMPLEX128: torch.complex128,
    TYPES.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TYPES.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TYPES.FLOAT8E5M2: torch.float8_e5m2,
    TYPES.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TYPES.INT4: torch.int8,
    TYPES.UINT4: torch.uint8,
    TYPES.FLOAT4E2M1: torch.float16,
}
for _name, _held in (("INT2", torch.int8), ("UINT2", torch.uint8)):
    if hasattr(TYPES, _name):
        _TORCH[getattr(TYPES, _name)] = _held
if hasattr(TYPES, "FLOAT8E8M0") and hasattr(torch, "float8_e8m0fnu"):
    _TORCH[TYPES.FLOAT8E8M0] = torch.float8_e8m0fnu

INTEGER_RANGE: dict[ir.DataType, tuple[int, int]] = {
    TYPES.INT8: (-128, 127),
    TYPES.UINT8: (0, 255),
    TYPES.INT16: (-32768, 32767),
    TYPES.UINT16: (0, 65535),
    TYPES.INT32: (-(2**31), 2**31 - 1),
    TYPES.INT4: (-8, 7),
    TYPES.UINT4: (0, 15),
}
for _name, _range in (("INT2", (-2, 1)), ("UINT2", (0, 3))):
    if hasattr(TYPES, _name):
        INTEGER_RANGE[getattr(TYPES, _name)] = _range

TRAINABLE = frozenset({TYPES.FLOAT, TYPES.DOUBLE, TYPES.FLOAT16, TYPES.BFLOAT16})

_FLOAT8_VIEWS = {
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
}
if hasattr(torch, "float8_e8m0fnu"):
    _FLOAT8_VIEWS[torch.float8_e8m0fnu] = ml_dtypes.float8_e8m0fnu


def torch_dtype(data_type: ir.DataType | int) -> torch.dtype:
    """The PyTorch type that holds values of an ONNX type. Raises ModelError for strings and unknown types."""
    try:
        return _TORCH[ir.DataType(data_type)]
    except (KeyError, ValueError):
        raise ModelError(f"PyTorch has no tensor of ONNX type {data_type!r}.") from None


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """A tensor of its own (writable, contiguous) with the values of `array`, which may be of an ml_dtypes type."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    name = array.dtype.name
    if name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if name.startswith("float8"):
        held = next(t for t, numpy_type in _FLOAT8_VIEWS.items() if np.dtype(numpy_type) == array.dtype)
        return torch.from_numpy(array.view(np.uint8).copy()).view(held)
    if name in ("int4", "int2"):
        array = array.astype(np.int8)
    elif name in ("uint4", "uint2"):
        array = array.astype(np.uint8)
    elif name == "float4_e2m1fn":
        array = array.astype(np.float16)
    return torch.from_numpy(array.copy())


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The values of a tensor as numpy, on the CPU; bfloat16 and float8 as ml_dtypes."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype in _FLOAT8_VIEWS:
        return tensor.view(torch.uint8).numpy().view(_FLOAT8_VIEWS[tensor.dtype])
    array: np.ndarray = tensor.numpy()
    return array


def from_ir(tensor: ir.TensorProtocol) -> torch.Tensor:
    """An ONNX tensor's values as a PyTorch tensor of its own."""
    torch_dtype(tensor.dtype)
    return from_numpy(tensor.numpy())
