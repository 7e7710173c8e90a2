"""The numbers of one made-up input: what its name, its type and the nodes that read it say that it may hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.fit import InputSpec
from onnxprune.graph.input_roles import integer_role

MASKS = ("ones", "zeros", "mixed")
"""What a mask may hold: a mask may say what is seen, or what is not."""


def is_mask(spec: InputSpec) -> bool:
    """Say whether an input is a mask, which its name tells."""
    return "mask" in spec.name.lower()


def mask_of(shape: tuple[int, ...], kind: str) -> npt.NDArray[Any]:
    """Return ones, zeros, or (mixed) ones in the first half of each row."""
    mask = np.full(shape, kind != "zeros", bool)
    if kind == "mixed" and shape:
        mask[..., (shape[-1] + 1) // 2 :] = False
    return mask


def draw(rng: np.random.Generator, spec: InputSpec, shape: tuple[int, ...], masks: str) -> npt.NDArray[Any]:
    """Return numbers for one input: masks, ids within bounds, images of bytes, floats from a standard normal.

    Args:
        rng: Where the numbers come from.
        spec: The input.
        shape: Its extents.
        masks: What a mask holds, one of `MASKS`.
    """
    masked = is_mask(spec)
    if spec.element_type == ir.DataType.STRING:
        return np.full(shape, "a", dtype=object)
    dtype = spec.element_type.numpy()
    if spec.element_type == ir.DataType.BOOL:
        return mask_of(shape, masks) if masked else rng.integers(0, 2, shape).astype(bool)
    if spec.element_type.is_integer():
        role = integer_role(spec.value)
        if role.bound is None and role.constant is None and masked:
            return mask_of(shape, masks).astype(dtype)
        return _integers(rng, spec.element_type, shape, role.bound, role.constant)
    if np.dtype(dtype).kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return mask_of(shape, masks).astype(dtype) if masked else rng.standard_normal(shape, np.float32).astype(dtype)


def _integers(
    rng: np.random.Generator, dtype: ir.DataType, shape: tuple[int, ...], bound: int | None, constant: int | None
) -> npt.NDArray[Any]:
    """Integers below `bound`. A constant that the graph looks for fills a scalar, and ends every row of a tensor."""
    count = int(np.prod(shape))
    if bound is None:
        if dtype in (ir.DataType.UINT8, ir.DataType.INT8):
            bound = 256 if dtype == ir.DataType.UINT8 else 128
        else:
            bound = 2
            if count == 1 and constant is None:
                return np.ones(shape, dtype.numpy())
    array = rng.integers(0, max(bound, 1), shape).astype(dtype.numpy())
    if constant is not None and count and constant >= 0:
        if count == 1 or not shape:
            array[...] = constant
        else:
            array[..., -1] = constant
    return array
