"""Conversions that the generated code makes between tensors, Python numbers, and integers carried in float tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnxprune.bridge.dtypes import INTEGER_RANGE, from_numpy, torch_dtype
from onnxprune.bridge.parameters import Target


def device_of(anchor: torch.Tensor) -> torch.device:
    """The device the module is on."""
    return anchor.device


def read(value: torch.Tensor) -> Any:
    """A tensor's numbers as a Python number or (nested) list. Waits for the device."""
    return value.tolist()


def tensor(value: Any, dtype: torch.dtype, anchor: torch.Tensor) -> torch.Tensor:
    """Python numbers as a tensor on the module's device."""
    return torch.tensor(value, dtype=dtype, device=anchor.device)


def settle(carried: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Integers carried in a float tensor as a tensor of their own type. Gradients end here."""
    if carried.dtype == dtype:
        return carried
    return carried.detach().to(dtype)


def carry(integers: torch.Tensor) -> torch.Tensor:
    """An integer tensor as a float tensor that holds the same values exactly."""
    if integers.is_floating_point():
        return integers
    return integers.to(torch.float64 if integers.dtype in (torch.int32, torch.int64, torch.uint32) else torch.float32)


def straight_through(exact: torch.Tensor, approximate: torch.Tensor) -> torch.Tensor:
    """The value of `exact` with the gradient of `approximate`."""
    return approximate + (exact - approximate).detach()


class _Round(torch.autograd.Function):
    """Round half to even; the gradient passes straight through (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def round_through(x: torch.Tensor) -> torch.Tensor:
    """Round half to even with a straight-through gradient."""
    rounded: torch.Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return rounded


def along(parameter: torch.Tensor | None, x: torch.Tensor, axis: int, block_size: int = 0) -> torch.Tensor | None:
    """Shape a scale or zero point so that it broadcasts against `x`: per tensor, per axis, or in blocks of an axis."""
    if parameter is None or parameter.dim() == 0:
        return parameter
    if block_size and parameter.dim() == x.dim():
        return parameter.repeat_interleave(block_size, dim=axis).narrow(axis, 0, x.shape[axis])
    if parameter.numel() == 1 and parameter.dim() <= 1:
        return parameter.reshape(())
    if parameter.dim() == 1:
        shape = [1] * x.dim()
        shape[axis] = parameter.shape[0]
        return parameter.reshape(shape)
    if parameter.dim() == x.dim() and parameter.shape != x.shape:
        for dim in range(x.dim()):
            if parameter.shape[dim] not in (1, x.shape[dim]):
                parameter = parameter.repeat_interleave(-(-x.shape[dim] // parameter.shape[dim]), dim=dim)
                parameter = parameter.narrow(dim, 0, x.shape[dim])
    return parameter


def dequantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, axis: int, block_size: int = 0
) -> torch.Tensor:
    """(x - zero point) * scale in the type of `scale`."""
    scale = along(scale, x, axis, block_size)  # type: ignore[assignment]
    zero_point = along(zero_point, x, axis, block_size)
    centred = x if zero_point is None else x - zero_point.to(x.dtype)
    return centred.to(scale.dtype) * scale


def quantize_weight(
    latent: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    axis: int,
    block_size: int,
    low: int,
    high: int,
) -> torch.Tensor:
    """A weight in real units as the integers it is stored as, carried in float; straight-through gradient."""
    scale = along(scale, latent, axis, block_size)  # type: ignore[assignment]
    zero_point = along(zero_point, latent, axis, block_size)
    scaled = round_through(latent / scale.to(latent.dtype))
    if zero_point is not None:
        scaled = scaled + zero_point.to(latent.dtype)
    return scaled.clamp(low, high)


def integer_range(name: str) -> tuple[int, int]:
    """The smallest and largest value of an ONNX integer type, by its name."""
    return INTEGER_RANGE[ir.DataType[name]]


def held_in(name: str) -> torch.dtype:
    """The PyTorch type that holds values of an ONNX type, by its name."""
    return torch_dtype(ir.DataType[name])


def dequantized(
    tensor: ir.TensorProtocol, scale: ir.TensorProtocol | None, zero: ir.TensorProtocol | None, target: Target
) -> torch.Tensor:
    """A quantised weight in real units, float32: (q - zero point) * scale."""
    assert scale is not None
    integers = from_numpy(tensor.numpy().astype(np.float64))
    scales = from_numpy(scale.numpy().astype(np.float64))
    zeros = None if zero is None else from_numpy(zero.numpy().astype(np.float64))
    return dequantize(integers, scales, zeros, target.axis, target.block_size).float()
