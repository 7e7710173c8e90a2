"""Random numbers. Without a seed they follow PyTorch's generator; with one each call gives the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from onnxprune.bridge.dtypes import torch_dtype
from onnxprune.bridge.registry import op


def _generator(seed: float | None, device: torch.device | None) -> torch.Generator | None:
    if seed is None:
        return None
    return torch.Generator(device=device or "cpu").manual_seed(int(seed * 1000003) & 0x7FFFFFFF)


@op("RandomNormal", differentiable=False)
def random_normal(
    shape: Sequence[int],
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Normal numbers of a fixed shape."""
    drawn = torch.randn(tuple(shape), generator=_generator(seed, device), device=device)
    return (drawn * scale + mean).to(torch_dtype(dtype))


@op("RandomNormalLike", differentiable=False)
def random_normal_like(
    x: torch.Tensor, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> torch.Tensor:
    """Normal numbers of another tensor's shape."""
    drawn = torch.randn(x.shape, generator=_generator(seed, x.device), device=x.device) * scale + mean
    return drawn.to(x.dtype if dtype is None else torch_dtype(dtype))


@op("RandomUniform", differentiable=False)
def random_uniform(
    shape: Sequence[int],
    dtype: int = 1,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Uniform numbers of a fixed shape."""
    drawn = torch.rand(tuple(shape), generator=_generator(seed, device), device=device)
    return (drawn * (high - low) + low).to(torch_dtype(dtype))


@op("RandomUniformLike", differentiable=False)
def random_uniform_like(
    x: torch.Tensor, dtype: int | None = None, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> torch.Tensor:
    """Uniform numbers of another tensor's shape."""
    drawn = torch.rand(x.shape, generator=_generator(seed, x.device), device=x.device) * (high - low) + low
    return drawn.to(x.dtype if dtype is None else torch_dtype(dtype))


@op("Bernoulli", differentiable=False)
def bernoulli(x: torch.Tensor, dtype: int | None = None, seed: float | None = None) -> torch.Tensor:
    """One with probability x, else zero."""
    drawn = torch.bernoulli(x, generator=_generator(seed, x.device))
    return drawn.to(x.dtype if dtype is None else torch_dtype(dtype))


@op("Multinomial", differentiable=False)
def multinomial(x: torch.Tensor, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> torch.Tensor:
    """Class numbers drawn from unnormalised log-probabilities (batch, classes)."""
    weights = torch.softmax(x.float(), dim=1)
    return torch.multinomial(weights, sample_size, True, generator=_generator(seed, x.device)).to(torch_dtype(dtype))
