"""Fourier transforms, windows and the mel matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.bridge.dtypes import torch_dtype
from onnxprune.bridge.registry import op


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _transform(x: torch.Tensor, length: int | None, axis: int, inverse: int, onesided: int) -> torch.Tensor:
    """x (..., 1 or 2 for real and imaginary part), transformed along one axis."""
    axis = axis % x.dim() if axis >= 0 else axis + x.dim()
    value = torch.complex(x[..., 0], x[..., 1]) if x.shape[-1] == 2 else x[..., 0]
    if inverse and onesided:
        n = length if length is not None else 2 * (x.shape[axis] - 1)
        real: torch.Tensor = torch.fft.irfft(value, n=n, dim=axis)
        return real.unsqueeze(-1)
    run = torch.fft.ifft if inverse else torch.fft.fft
    y = run(value, n=length, dim=axis)
    if onesided:
        y = y.narrow(axis, 0, y.shape[axis] // 2 + 1)
    return torch.view_as_real(y.resolve_conj())


@op("DFT", since=17, host=(1,))
def dft_17(x: torch.Tensor, dft_length: Any = None, axis: int = 1, inverse: int = 0, onesided: int = 0) -> torch.Tensor:
    """Opset 17: the axis is an attribute."""
    return _transform(x, _first(dft_length), axis, inverse, onesided)


@op("DFT", since=20, host=(1, 2))
def dft(x: torch.Tensor, dft_length: Any = None, axis: Any = None, inverse: int = 0, onesided: int = 0) -> torch.Tensor:
    """Discrete Fourier transform; the second last axis by default."""
    return _transform(x, _first(dft_length), -2 if axis is None else _first(axis), inverse, onesided)


@op("STFT", host=(1, 3))
def stft(
    x: torch.Tensor,
    frame_step: Any,
    window: torch.Tensor | None = None,
    frame_length: Any = None,
    onesided: int = 1,
) -> torch.Tensor:
    """Transforms of windowed frames: (batch, frames, bins, 2)."""
    length = _first(frame_length) or (window.shape[0] if window is not None else x.shape[1])
    frames = x.unfold(1, length, _first(frame_step)).movedim(-1, 2)  # (batch, frames, length, 1 or 2)
    if window is not None:
        taper = F.pad(window, (0, length - window.shape[0]))
        frames = frames * taper.reshape(-1, 1)
    return _transform(frames, None, 2, 0, onesided)


def _window(
    size: Any, coefficients: tuple[float, ...], periodic: int, dtype: int, device: torch.device | None
) -> torch.Tensor:
    count = int(_first(size))
    span = count if periodic else count - 1
    angle = torch.arange(count, dtype=torch.float64, device=device) * (2 * math.pi / max(span, 1))
    total = torch.zeros_like(angle)
    for order, coefficient in enumerate(coefficients):
        total = total + coefficient * torch.cos(order * angle)
    return total.to(torch_dtype(dtype))


@op("HannWindow", host=(0,), differentiable=False)
def hann_window(
    size: Any, output_datatype: int = 1, periodic: int = 1, device: torch.device | None = None
) -> torch.Tensor:
    """1/2 - 1/2 cos."""
    return _window(size, (0.5, -0.5), periodic, output_datatype, device)


@op("HammingWindow", host=(0,), differentiable=False)
def hamming_window(
    size: Any, output_datatype: int = 1, periodic: int = 1, device: torch.device | None = None
) -> torch.Tensor:
    """25/46 - 21/46 cos."""
    return _window(size, (25 / 46, -21 / 46), periodic, output_datatype, device)


@op("BlackmanWindow", host=(0,), differentiable=False)
def blackman_window(
    size: Any, output_datatype: int = 1, periodic: int = 1, device: torch.device | None = None
) -> torch.Tensor:
    """0.42 - 0.5 cos + 0.08 cos 2."""
    return _window(size, (0.42, -0.5, 0.08), periodic, output_datatype, device)


@op("MelWeightMatrix", host=(0, 1, 2, 3, 4), differentiable=False)
def mel_weight_matrix(
    num_mel_bins: Any,
    dft_length: Any,
    sample_rate: Any,
    lower_edge_hertz: Any,
    upper_edge_hertz: Any,
    output_datatype: int = 1,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Triangles on the mel scale (2595 log10(1 + f/700)): (dft_length / 2 + 1, num_mel_bins)."""
    bins, length, rate, low, high = (
        _first(v) for v in (num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz)
    )
    low_mel, high_mel = (2595 * math.log10(1 + f / 700) for f in (low, high))
    step = (high_mel - low_mel) / (bins + 2)
    edges = [700 * (10 ** ((low_mel + i * step) / 2595) - 1) for i in range(bins + 2)]
    places = [int((length + 1) * f // rate) for f in edges]
    matrix = torch.zeros(length // 2 + 1, bins)
    for i in range(bins):
        left, centre, right = places[i : i + 3]
        if centre == left:
            matrix[centre, i] = 1
        else:
            for j in range(left, centre + 1):
                matrix[j, i] = (j - left) / (centre - left)
        if right > centre:
            for j in range(centre, right):
                matrix[j, i] = (right - j) / (right - centre)
    return matrix.to(device=device, dtype=torch_dtype(output_datatype))
