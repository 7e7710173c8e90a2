"""How the numbers of one tensor are stored: exact, fp16, int8 per output channel, or indices into a codebook.

In: the dense tensor. Out: `Coded`, one code per element, where the code `fill` stands for the value that need not be
stored (zero). `onnxprune.packing.positions` then says where the other codes are; `onnxprune.packing.decoder` writes
the operators that undo both. Zeros stay zero in every coding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxprune.packing.kmeans import boundaries, kmeans_1d

Array = NDArray[Any]

_FLOATS = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)
_SAMPLE = 4096


@dataclass(frozen=True)
class Coded:
    """One tensor as codes.

    Attributes:
        kind: "exact", "fp16", "int8", "codebook16" or "codebook256".
        codes: [size], flat. What is stored for each element.
        fill: [1], of the same data type: the code that need not be stored.
        bits: Bits per stored code: the width of the data type, or 4 for codebooks of up to 16 entries.
        table: [k] values of the tensor's own data type when codes are indices into it.
        scale: Broadcastable to the tensor's shape, when the value is code * scale.
    """

    kind: str
    codes: Array
    fill: Array
    bits: int
    table: Array | None = None
    scale: Array | None = None

    @property
    def kept(self) -> NDArray[np.bool_]:
        """[size] Which codes must be stored. Compared as bits, so that -0.0 and NaN are kept."""
        return np.asarray(as_bits(self.codes) != as_bits(self.fill))

    @property
    def side_bytes(self) -> int:
        """Bytes of the codebook and the scales."""
        return sum(a.nbytes for a in (self.table, self.scale) if a is not None)

    def decode(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The tensor these codes stand for, computed with numpy."""
        flat = self.codes if self.table is None else self.table[self.codes]
        if self.scale is None:
            return flat.astype(dtype).reshape(shape)
        return (flat.astype(self.scale.dtype).reshape(shape) * self.scale).astype(dtype)


Coder = Callable[[Array, int], "Coded | None"]
CODERS: dict[str, Coder] = {}


def coder(kind: str) -> Callable[[Coder], Coder]:
    """Register how a kind of values is coded: (tensor, channel axis) -> Coded, or None where it cannot be."""

    def register(function: Coder) -> Coder:
        CODERS[kind] = function
        return function

    return register


def as_bits(array: Array) -> Array:
    """The same memory as unsigned integers, so that equality means equality of bits."""
    return array.view(f"u{array.dtype.itemsize}")


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether lossy codings are defined for this data type."""
    return dtype.type in _FLOATS


@coder("exact")
def code_exact(tensor: Array, channel_axis: int = 0) -> Coded:
    """Every bit kept. Fill is zero; for 8-bit integers the commonest value (uint8 zero points are rarely 0)."""
    del channel_axis
    flat = np.ascontiguousarray(tensor).reshape(-1)
    fill = np.zeros(1, flat.dtype)
    if flat.dtype.kind in "iu" and flat.size:
        commonest = int(np.bincount(flat.view(np.uint8), minlength=256).argmax())
        fill = np.array([commonest], np.uint8).view(flat.dtype)
    return Coded("exact", flat, fill, flat.dtype.itemsize * 8)


@coder("shared")
def code_shared(tensor: Array, channel_axis: int = 0) -> Coded | None:
    """Every bit kept, through a table: for floats with at most 256 distinct values (weights that were clustered)."""
    del channel_axis
    flat = np.ascontiguousarray(tensor).reshape(-1)
    if not is_float(flat.dtype) or np.unique(as_bits(flat[:_SAMPLE])).size > 256:
        return None
    table = np.unique(as_bits(flat))  # positive zero is the smallest bit pattern, so it gets code 0
    if table.size and table[0] != 0:
        table = np.concatenate((np.zeros(1, table.dtype), table))
    if not 0 < table.size <= 256:
        return None
    codes = np.searchsorted(table, as_bits(flat)).astype(np.uint8)
    return Coded("exact", codes, np.zeros(1, np.uint8), 4 if table.size <= 16 else 8, table=table.view(flat.dtype))


@coder("fp16")
def code_fp16(tensor: Array, channel_axis: int = 0) -> Coded | None:
    """Rounded to float16; None where the type is 16 bits wide already or a value would overflow."""
    del channel_axis
    if tensor.dtype.itemsize <= 2:
        return None
    with np.errstate(over="ignore", under="ignore"):
        codes = _positive_zeros(tensor.reshape(-1).astype(np.float16))
    return Coded("fp16", codes, np.zeros(1, np.float16), 16) if np.isfinite(codes).all() else None


@coder("int8")
def code_int8(tensor: Array, channel_axis: int = 0) -> Coded:
    """Symmetric int8, one scale per index of `channel_axis`: round(w / s), s = max|w| / 127."""
    scale_type = np.float64 if tensor.dtype == np.float64 else np.float32
    wide = tensor.astype(scale_type)
    others = tuple(a for a in range(tensor.ndim) if a != channel_axis)
    scale = np.abs(wide).max(axis=others, keepdims=True) / scale_type(127)
    scale[scale == 0] = 1
    codes = np.clip(np.rint(wide / scale), -127, 127).astype(np.int8).reshape(-1)
    return Coded("int8", codes, np.zeros(1, np.int8), 8, scale=scale)


@coder("codebook16")
def code_codebook16(tensor: Array, channel_axis: int = 0) -> Coded:
    """Zero and 15 shared values, 4 bits each."""
    del channel_axis
    return _codebook(tensor, 16)


@coder("codebook256")
def code_codebook256(tensor: Array, channel_axis: int = 0) -> Coded:
    """Zero and 255 shared values, 8 bits each."""
    del channel_axis
    return _codebook(tensor, 256)


def _codebook(tensor: Array, entries: int) -> Coded:
    """Entry 0 is zero; the other entries are the k-means centroids of the non-zero values."""
    flat = tensor.reshape(-1).astype(np.float64)
    nonzero = flat != 0
    codes = np.zeros(flat.size, np.uint8)
    centroids = np.empty(0)
    if nonzero.any():
        centroids = kmeans_1d(flat[nonzero], entries - 1)
        codes[nonzero] = 1 + np.searchsorted(boundaries(centroids), flat[nonzero])
    table = np.concatenate(([0.0], centroids)).astype(tensor.dtype)
    return Coded(f"codebook{entries}", codes, np.zeros(1, np.uint8), 4 if entries == 16 else 8, table=table)


def _positive_zeros(array: Array) -> Array:
    array[array == 0] = 0
    return array
