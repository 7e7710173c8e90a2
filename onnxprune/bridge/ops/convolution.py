"""Conv and ConvTranspose in one, two and three dimensions, with ONNX's padding rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from onnxprune.bridge.registry import MICROSOFT, op

_CONV: dict[int, Callable[..., Any]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Any]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def same_pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], lower: bool
) -> tuple[list[int], list[int]]:
    """SAME_UPPER and SAME_LOWER: output size ceil(size / stride); an odd pixel goes to the end, or with `lower` to the
    beginning."""
    total = [
        max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    small = [t // 2 for t in total]
    large = [t - t // 2 for t in total]
    return (large, small) if lower else (small, large)


class Window(NamedTuple):
    """What slides over the spatial axes; one number an axis, with the padding at the beginning and the end."""

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    begin: Sequence[int]
    end: Sequence[int]


def window(
    x: torch.Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
) -> Window:
    """The window that a node's attributes describe, with their defaults."""
    rank = len(kernel)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        begin, end = same_pads(x.shape[2:], kernel, strides, dilations, auto_pad == "SAME_LOWER")
        return Window(kernel, strides, dilations, begin, end)
    if auto_pad == "VALID" or not pads:
        return Window(kernel, strides, dilations, (0,) * rank, (0,) * rank)
    return Window(kernel, strides, dilations, pads[:rank], pads[rank:])


def spatial_pad(x: torch.Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> torch.Tensor:
    """Pad the spatial axes (the last ones) with a constant; negative amounts cut."""
    amounts = [n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]
    return F.pad(x, amounts, value=value)


@op("Conv")
def conv(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] = (),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> torch.Tensor:
    """x (N, C, ...) with w (M, C/group, ...) and bias b (M)."""
    rank = w.dim() - 2
    _, strides, dilations, begin, end = window(x, w.shape[2:], strides, dilations, pads, auto_pad)  # type: ignore[assignment]
    if tuple(begin) != tuple(end):
        x, begin = spatial_pad(x, begin, end), (0,) * rank
    result: torch.Tensor = _CONV[rank](x, w, b, strides, tuple(begin), dilations, group)
    return result


@op("ConvTranspose")
def conv_transpose(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] = (),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    output_padding: tuple[int, ...] = (),
    output_shape: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> torch.Tensor:
    """x (N, C, ...) with w (C, M/group, ...): computed without padding, then cut to what ONNX asks for."""
    rank = w.dim() - 2
    strides = strides or (1,) * rank
    dilations = dilations or (1,) * rank
    extra = output_padding or (0,) * rank
    if not output_shape and auto_pad == "NOTSET":
        pads = pads or (0,) * (2 * rank)
        if pads[:rank] == pads[rank:] and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
            plain: torch.Tensor = _TRANSPOSED[rank](x, w, b, strides, pads[:rank], extra, group, dilations)
            return plain
    full = [
        s * (n - 1) + (k - 1) * d + 1 + e
        for s, n, k, d, e in zip(strides, x.shape[2:], w.shape[2:], dilations, extra, strict=True)
    ]
    begin, end = _transposed_pads(x, full, strides, pads, tuple(output_shape)[-rank:], auto_pad)
    result: torch.Tensor = _TRANSPOSED[rank](x, w, None, strides, (0,) * rank, (0,) * rank, group, dilations)
    result = spatial_pad(result, [-n for n in begin], [e - n for e, n in zip(extra, end, strict=True)])
    return result if b is None else result + b.reshape(-1, *([1] * rank))


def _transposed_pads(
    x: torch.Tensor,
    full: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    output_shape: Sequence[int],
    auto_pad: str,
) -> tuple[Sequence[int], Sequence[int]]:
    """What is cut off a transposed convolution of size `full`, so that it gets the size asked for."""
    rank = len(full)
    if not output_shape:
        if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
            return (pads[:rank], pads[rank:]) if pads and auto_pad != "VALID" else ((0,) * rank, (0,) * rank)
        output_shape = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    total = [f - o for f, o in zip(full, output_shape, strict=True)]
    small = [t // 2 for t in total]
    large = [t - t // 2 for t in total]
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


@op("FusedConv", domain=MICROSOFT)
def fused_conv(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    activation: str = "",
    activation_params: tuple[float, ...] = (),
    **attributes: Any,
) -> torch.Tensor:
    """Conv, plus z, then an activation."""
    result = conv(x, w, b, **attributes)
    return activate(result if z is None else result + z, activation, activation_params)


def activate(x: torch.Tensor, name: str, parameters: Sequence[float] = (), alpha: float = 0.0) -> torch.Tensor:
    """The activation that a fused operator of ONNX Runtime names."""
    first = parameters[0] if parameters else alpha
    known: dict[str, Callable[[], torch.Tensor]] = {
        "": lambda: x,
        "Relu": lambda: torch.relu(x),
        "Tanh": lambda: torch.tanh(x),
        "Sigmoid": lambda: torch.sigmoid(x),
        "LeakyRelu": lambda: F.leaky_relu(x, first),
        "Clip": lambda: torch.clamp(x, parameters[0], parameters[1]),
        "HardSigmoid": lambda: torch.clamp(x * parameters[0] + parameters[1], 0, 1),
        "HardSwish": lambda: F.hardswish(x),
    }
    return known[name]()
