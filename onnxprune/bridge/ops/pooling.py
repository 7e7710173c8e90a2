"""Pooling with ONNX's padding, ceil mode and dilation rules.

AveragePool and LpPool are sums over windows divided by how many elements of the (padded) input each window covers;
ceil mode drops windows that would start behind the input and its padding, as PyTorch and ONNX >= 19 do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.bridge.ops.convolution import Window, spatial_pad, window
from onnxprune.bridge.registry import op

_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _counts(sizes: Sequence[int], shape: Window, ceil_mode: int) -> list[int]:
    """How many windows each spatial axis has."""
    counts = []
    for n, k, s, d, low, high in zip(sizes, *shape, strict=True):
        room = n + low + high - d * (k - 1) - 1
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= n + low:
            count -= 1
        counts.append(count)
    return counts


def _padded(x: torch.Tensor, shape: Window, ceil_mode: int, value: float) -> torch.Tensor:
    """x padded so far that plain windows without ceil mode are the windows asked for."""
    counts = _counts(x.shape[2:], shape, ceil_mode)
    need = [
        (c - 1) * s + d * (k - 1) + 1 - n - low
        for c, n, k, s, d, low, _ in zip(counts, x.shape[2:], *shape, strict=True)
    ]
    return spatial_pad(x, shape.begin, need, value)


def _is_plain(shape: Window) -> bool:
    """Whether PyTorch pools with this padding: the same at both ends, at most half a kernel."""
    same = tuple(shape.begin) == tuple(shape.end)
    return same and all(2 * p <= k for p, k in zip(shape.begin, shape.kernel, strict=True))


@op("MaxPool", multiple=True, quantized=(0,), carries=(0,))
def max_pool(
    x: torch.Tensor,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    storage_order: int = 0,
    strides: tuple[int, ...] = (),
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """Largest of each window, and where it is in the flattened input (storage_order=1: column by column)."""
    rank, shape = len(kernel_shape), window(x, kernel_shape, strides, dilations, pads, auto_pad)
    _, strides, dilations, begin, _ = shape  # type: ignore[assignment]
    if n_outputs == 1 and _is_plain(shape) and x.is_floating_point():
        return (_MAX[rank](x, kernel_shape, strides, tuple(begin), dilations, bool(ceil_mode)),)
    source = x if x.is_floating_point() else x.to(torch.float64)
    padded = _padded(source, shape, ceil_mode, float("-inf"))
    if n_outputs == 1:
        return (_MAX[rank](padded, kernel_shape, strides, 0, dilations).to(x.dtype),)
    values, places = _MAX[rank](padded, kernel_shape, strides, 0, dilations, False, True)
    return values.to(x.dtype), _flat_indices(places, x.shape, padded.shape[2:], begin, storage_order)


def _flat_indices(
    places: torch.Tensor, shape: Sequence[int], padded: Sequence[int], begin: Sequence[int], storage_order: int
) -> torch.Tensor:
    """Indices into the padded plane of each channel as indices into the whole flattened input."""
    coordinates = []
    for extent, low in zip(reversed(padded), reversed(begin), strict=True):
        coordinates.append(places % extent - low)
        places = places // extent
    coordinates.reverse()
    order = range(len(coordinates)) if storage_order == 0 else reversed(range(len(coordinates)))
    flat = torch.zeros_like(coordinates[0])
    for axis in order:
        flat = flat * shape[2 + axis] + coordinates[axis]
    plane = 1
    for extent in shape[2:]:
        plane *= extent
    channels = torch.arange(shape[0] * shape[1], device=flat.device).reshape(shape[0], shape[1], *([1] * len(padded)))
    return flat + channels * plane


@op("AveragePool")
def average_pool(
    x: torch.Tensor,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> torch.Tensor:
    """Mean of each window, over the input's own elements, or with count_include_pad over the padding too."""
    rank, shape = len(kernel_shape), window(x, kernel_shape, strides, dilations, pads, auto_pad)
    if all(d == 1 for d in shape.dilations) and rank in _AVERAGE and _is_plain(shape):
        plain: torch.Tensor = _AVERAGE[rank](
            x, kernel_shape, shape.strides, tuple(shape.begin), bool(ceil_mode), bool(count_include_pad)
        )
        return plain
    total = _window_sums(x, shape, ceil_mode)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if count_include_pad:
        ones = spatial_pad(ones, shape.begin, shape.end, 1.0)
        shape = shape._replace(begin=(0,) * rank, end=(0,) * rank)
    return total / _window_sums(ones, shape, ceil_mode)


def _window_sums(x: torch.Tensor, shape: Window, ceil_mode: int) -> torch.Tensor:
    """Sum of each window: one axis after the other, by strided views."""
    x = _padded(x, shape, ceil_mode, 0.0)
    for axis, (k, s, d) in enumerate(zip(shape.kernel, shape.strides, shape.dilations, strict=True), start=2):
        windows = x.unfold(axis, d * (k - 1) + 1, s)
        x = windows[..., ::d].sum(-1)
    return x


@op("LpPool")
def lp_pool(
    x: torch.Tensor,
    kernel_shape: tuple[int, ...],
    p: float = 2,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> torch.Tensor:
    """p-norm of each window."""
    shape = window(x, kernel_shape, strides, dilations, pads, auto_pad)
    powers = torch.abs(x) ** p
    return _window_sums(powers, shape, ceil_mode) ** (1.0 / p)


@op("GlobalAveragePool")
def global_average_pool(x: torch.Tensor) -> torch.Tensor:
    """Mean over all spatial axes, which stay with extent one."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(x: torch.Tensor) -> torch.Tensor:
    """Largest over all spatial axes."""
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


@op("GlobalLpPool")
def global_lp_pool(x: torch.Tensor, p: float = 2) -> torch.Tensor:
    """p-norm over all spatial axes."""
    return (torch.abs(x) ** p).sum(dim=tuple(range(2, x.dim())), keepdim=True) ** (1.0 / p)


@op("MaxUnpool", host=(2,))
def max_unpool(
    x: torch.Tensor,
    indices: torch.Tensor,
    output_shape: list[int] | None = None,
    kernel_shape: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> torch.Tensor:
    """Put values back where MaxPool took them from; zero elsewhere."""
    rank = len(kernel_shape)
    strides = strides or (1,) * rank
    pads = pads or (0,) * (2 * rank)
    natural = [
        (n - 1) * s + k - low - high
        for n, s, k, low, high in zip(x.shape[2:], strides, kernel_shape, pads[:rank], pads[rank:], strict=True)
    ]
    inferred = [*x.shape[:2], *natural]
    shape = inferred if output_shape is None else output_shape
    if shape != inferred:  # the indices refer to the inferred shape
        coordinates, rest = [], indices
        for extent in reversed(inferred):
            coordinates.append(rest % extent)
            rest = rest // extent
        indices = torch.zeros_like(indices)
        for extent, coordinate in zip(shape, reversed(coordinates), strict=True):
            indices = indices * extent + coordinate
    size = 1
    for extent in shape:
        size *= extent
    flat = torch.zeros(size, dtype=x.dtype, device=x.device)
    return flat.scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(shape)
