"""Cast, CastLike and BitCast."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch

from onnxprune.bridge.convert import held_in
from onnxprune.bridge.dtypes import INTEGER_RANGE, torch_dtype
from onnxprune.bridge.registry import op

_FLOAT8_NO_INFINITY = frozenset({"FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2FNUZ"})
_LAST_STEP = {"FLOAT8E4M3FN": 32.0, "FLOAT8E4M3FNUZ": 16.0, "FLOAT8E5M2": 8192.0, "FLOAT8E5M2FNUZ": 8192.0}
"""The distance between the two largest finite values."""


@op("Cast", quantized=(0,))
def cast(
    x: torch.Tensor, to: int, saturate: int = 1, round_mode: str = "up", input_types: tuple[str | None, ...] = ()
) -> torch.Tensor:
    """To another type. Floats to integers are cut towards zero; float8 saturates or overflows to NaN or infinity."""
    source = input_types[0] if input_types else None
    name = ir.DataType(to).name
    if name.startswith("FLOAT8") or name == "FLOAT4E2M1":
        return to_small_float(x, name, bool(saturate), round_mode)
    if ir.DataType(to) in INTEGER_RANGE and name in ("INT4", "UINT4", "INT2", "UINT2"):
        return _to_small_integer(x, name)
    target = torch_dtype(to)
    if x.is_floating_point() and source is not None and source.startswith(("INT", "UINT")):
        x = x if target.is_floating_point else x.to(torch.int64)
    if x.element_size() == 1 and x.is_floating_point():
        x = x.float()
    if x.is_floating_point() and target in (torch.uint8, torch.uint16, torch.uint32, torch.int8, torch.int16):
        return x.to(torch.int64).to(target)  # out of range wraps, as numpy and ONNX Runtime do
    return x.to(target)


def _to_small_integer(x: torch.Tensor, name: str) -> torch.Tensor:
    """Cut to the lowest bits, as the two's complement number they are."""
    low, high = INTEGER_RANGE[ir.DataType[name]]
    span = high - low + 1
    wide = (x.float() if x.is_floating_point() and x.element_size() == 1 else x).to(torch.int64)
    return ((wide - low) % span + low).to(held_in(name))


def to_small_float(x: torch.Tensor, name: str, saturate: bool, round_mode: str = "up") -> torch.Tensor:
    """Round to a float8 or float4 type by the tables of the ONNX Cast specification."""
    wide = x.float()
    if name == "FLOAT4E2M1":
        return _to_float4(wide).to(torch.float16)
    if name == "FLOAT8E8M0":
        return _to_e8m0(wide, saturate, round_mode)
    target = held_in(name)
    largest = torch.finfo(target).max
    clipped = wide.clamp(-largest, largest)
    if saturate:
        return torch.where(torch.isnan(wide), wide, clipped).to(target)
    rounded = wide.to(target)
    overflow = wide.abs() >= largest + _LAST_STEP[name] / 2
    edge = math.nan if name in _FLOAT8_NO_INFINITY else math.inf
    beyond = torch.copysign(torch.full_like(wide, edge), wide).to(target)
    return torch.where(overflow, beyond.view(torch.uint8), rounded.view(torch.uint8)).view(target)


def _to_float4(x: torch.Tensor) -> torch.Tensor:
    """float4e2m1: 0, .5, 1, 1.5, 2, 3, 4, 6 and negatives; halves to even, saturating."""
    magnitude = x.abs().clamp(max=6.0)
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    rounded = torch.copysign(torch.round(magnitude / step) * step, x)
    return torch.where(torch.isnan(x), torch.full_like(x, -0.0), rounded)


def _to_e8m0(x: torch.Tensor, saturate: bool, round_mode: str) -> torch.Tensor:
    """float8e8m0: powers of two from 2^-127 to 2^127 and NaN."""
    mantissa, exponent = torch.frexp(x.abs())  # x = mantissa * 2^exponent, mantissa in [1/2, 1)
    power = exponent - 1
    if round_mode == "up":
        power = power + (mantissa > 0.5)
    elif round_mode == "nearest":
        power = power + (mantissa >= 0.75)
    zero = x == 0
    code = (power + 127).clamp(0, 254) if saturate else torch.where((power > 127) | (power < -127), 255, power + 127)
    code = torch.where(zero, torch.zeros_like(code), code)
    code = torch.where(torch.isnan(x) | (x < 0), torch.full_like(code, 255), code)
    infinite = 254 if saturate else 255
    code = torch.where(torch.isinf(x) & (x > 0), torch.full_like(code, infinite), code)
    return code.to(torch.uint8).view(held_in("FLOAT8E8M0"))


@op("CastLike", fixed=(1,))
def cast_like(
    x: torch.Tensor,
    like: torch.Tensor,
    saturate: int = 1,
    round_mode: str = "up",
    input_types: tuple[str | None, ...] = (),
) -> torch.Tensor:
    """To the type of another tensor."""
    name = input_types[1] if len(input_types) > 1 else None
    if name is not None:
        return cast(x, int(ir.DataType[name]), saturate, round_mode, input_types[:1])
    return x.to(like.dtype)


@op("BitCast", differentiable=False)
def bit_cast(x: torch.Tensor, to: int) -> torch.Tensor:
    """The same bits as another type of the same width."""
    return x.contiguous().view(torch_dtype(to))
