"""Resize and Upsample in the general gather-and-weights form: for each resized axis, which input elements each output
element mixes, and by which weights. F.interpolate is used only where it computes the same (2-D half-pixel cases).

Source of the formulas: the ONNX Resize specification (opset 10 to 19) and its reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.bridge.registry import op


def _source_positions(
    out: int, length: int, scale: float, mode: str, roi: tuple[float, float], exact: float, device: Any
) -> torch.Tensor:
    """Where each output index lies on the input axis (coordinate_transformation_mode), in float32 as ONNX Runtime has
    it: floor and ceil hang on the last bit."""
    x = torch.arange(out, dtype=torch.float32, device=device)
    scale = torch.tensor(scale, dtype=torch.float32, device=device)  # type: ignore[assignment]
    if mode == "half_pixel":
        return (x + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        adjustment = out / exact
        return length / 2 * (1 - adjustment) + (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if out > 1 else torch.zeros_like(x)
    if mode == "align_corners":
        return torch.zeros_like(x) if out == 1 else x * (length - 1) / (out - 1)
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if mode == "tf_crop_and_resize":
        start, end = roi
        if out > 1:
            return start * (length - 1) + x * (end - start) * (length - 1) / (out - 1)
        return torch.full_like(x, 0.5 * (start + end) * (length - 1))
    raise ValueError(f"Resize has no coordinate_transformation_mode {mode!r}")


def _nearest(positions: torch.Tensor, rounding: str) -> torch.Tensor:
    if rounding == "round_prefer_floor":
        return torch.ceil(positions - 0.5)
    if rounding == "round_prefer_ceil":
        return torch.floor(positions + 0.5)
    return torch.floor(positions) if rounding == "floor" else torch.ceil(positions)


def _kernel(mode: str, distance: torch.Tensor, a: float) -> torch.Tensor:
    """The weight at a distance: the triangle, or Keys' cubic with coefficient a."""
    d = distance.abs()
    if mode == "linear":
        return (1 - d).clamp(min=0)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _taps(
    positions: torch.Tensor, length: int, scale: float, mode: str, a: float, exclude_outside: bool, antialias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input indices and weights (out, taps) of each output element."""
    half = 1 if mode == "linear" else 2
    stretch = min(scale, 1.0) if antialias else 1.0
    reach = math.ceil(half / stretch)
    offsets = torch.arange(-reach + 1, reach + 1, device=positions.device)
    base = torch.floor(positions)
    indices = base.unsqueeze(1) + offsets
    weights = _kernel(mode, (positions.unsqueeze(1) - indices) * stretch, a)
    if exclude_outside or antialias:
        inside = (indices >= 0) & (indices < length)
        weights = torch.where(inside, weights, torch.zeros_like(weights)) if exclude_outside else weights
        weights = weights / weights.sum(dim=1, keepdim=True)
    return indices.clamp(0, length - 1).to(torch.int64), weights


def _resize_axis(x: torch.Tensor, axis: int, indices: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    if weights is None:
        return x.index_select(axis, indices)
    matrix = torch.zeros(indices.shape[0], x.shape[axis], dtype=weights.dtype, device=x.device)
    matrix = matrix.scatter_add(1, indices, weights).to(x.dtype)
    return torch.matmul(x.movedim(axis, -1), matrix.t()).movedim(-1, axis)


def _sizes_for_policy(
    shape: Sequence[int], axes: Sequence[int], sizes: Sequence[int], policy: str
) -> tuple[list[int], list[float]]:
    """Output sizes and scales for `keep_aspect_ratio_policy`."""
    scales = [wanted / shape[axis] for axis, wanted in zip(axes, sizes, strict=True)]
    if policy == "stretch":
        return list(sizes), scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [math.floor(scale * shape[axis] + 0.5) for axis in axes], [scale] * len(axes)


def _resize(
    x: torch.Tensor,
    axes: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[float],
    roi: Sequence[float],
    mode: str,
    coordinates: str,
    nearest_mode: str,
    cubic_coeff_a: float,
    exclude_outside: int,
    extrapolation_value: float,
    antialias: int,
) -> torch.Tensor:
    half_pixel = coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and all(n > 1 for n in sizes))
    changed = [axis for axis, n in zip(axes, sizes, strict=True) if n != x.shape[axis]]
    exact = all(n == s * x.shape[axis] for axis, n, s in zip(axes, sizes, scales, strict=True))
    if mode == "linear" and half_pixel and not antialias and exact and changed == [2, 3] and x.dim() == 4:
        picked = dict(zip(axes, sizes, strict=True))
        return F.interpolate(x, size=(picked[2], picked[3]), mode="bilinear", align_corners=False)
    whole = x.dtype
    if mode != "nearest" and not x.is_floating_point():
        x = x.float()
    outside: list[tuple[int, torch.Tensor]] = []
    for place, (axis, out, scale) in enumerate(zip(axes, sizes, scales, strict=True)):
        length = x.shape[axis]
        bounds = (roi[place], roi[place + len(axes)]) if len(roi) == 2 * len(axes) else (0.0, 1.0)
        if out == length and scale == 1.0 and coordinates != "tf_crop_and_resize":
            continue
        positions = _source_positions(out, length, scale, coordinates, bounds, scale * length, x.device)
        if coordinates == "tf_crop_and_resize":
            outside.append((axis, (positions < 0) | (positions > length - 1)))
        if mode == "nearest":
            indices, weights = _nearest(positions, nearest_mode).clamp(0, length - 1).to(torch.int64), None
        else:
            indices, weights = _taps(
                positions, length, scale, mode, cubic_coeff_a, bool(exclude_outside), bool(antialias)
            )
        x = _resize_axis(x, axis, indices, weights)
    for axis, beyond in outside:
        shape = [-1 if d == axis else 1 for d in range(x.dim())]
        x = torch.where(beyond.reshape(shape), torch.full_like(x, extrapolation_value), x)
    if x.dtype != whole:
        x = torch.round(x).clamp(torch.iinfo(whole).min, torch.iinfo(whole).max).to(whole)
    return x


@op("Upsample", since=1, carries=(0,))
def upsample_7(x: torch.Tensor, scales: Sequence[float] = (), mode: str = "nearest", **legacy: float) -> torch.Tensor:
    """Opset 7 and before: scales are an attribute."""
    if not scales:
        scales = (1.0, 1.0, legacy["height_scale"], legacy["width_scale"])
    return upsample(x, scales, mode)


@op("Upsample", since=9, host=(1,))
def upsample(x: torch.Tensor, scales: Sequence[float], mode: str = "nearest") -> torch.Tensor:
    """Opset 9: asymmetric coordinates, rounded down for nearest."""
    return resize_10(x, scales, "linear" if mode in ("linear", "bilinear") else "nearest")


@op("Resize", since=10, host=(1,))
def resize_10(x: torch.Tensor, scales: Sequence[float], mode: str = "nearest") -> torch.Tensor:
    """Opset 10: asymmetric coordinates, rounded down for nearest."""
    sizes = [math.floor(scale * n + 1e-6) for scale, n in zip(scales, x.shape, strict=True)]
    return _resize(x, range(x.dim()), sizes, scales, (), mode, "asymmetric", "floor", -0.75, 0, 0.0, 0)


@op("Resize", since=11, host=(1, 2, 3))
def resize(
    x: torch.Tensor,
    roi: Sequence[float] | None = None,
    scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> torch.Tensor:
    """From opset 11: output sizes from scales, or scales from sizes; from 18 for some axes only."""
    chosen = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    if scales:
        factors = list(scales)
        wanted = [math.floor(scale * x.shape[axis] + 1e-6) for scale, axis in zip(factors, chosen, strict=True)]
    else:
        wanted, factors = _sizes_for_policy(x.shape, chosen, sizes or (), keep_aspect_ratio_policy)
    return _resize(
        x, chosen, wanted, factors, roi or (), mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a,
        exclude_outside, extrapolation_value, antialias,
    )  # fmt: skip
