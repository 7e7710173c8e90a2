"""Batch, instance, layer, group and RMS normalisation, LRN and their kin."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from onnxprune.bridge.registry import MICROSOFT, op


def _normalise(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    epsilon: float,
    momentum: float,
    update: bool,
) -> torch.Tensor:
    """ONNX momentum is the share of the old statistics: 1 - PyTorch's. Statistics that the graph itself works out
    pass gradients on, which PyTorch's own function does not do."""
    if mean.requires_grad or var.requires_grad:
        shape = (-1, *([1] * (x.dim() - 2)))
        factor = scale * torch.rsqrt(var + epsilon)
        return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)
    if x.dtype == mean.dtype or x.dtype in (torch.float16, torch.bfloat16):
        return F.batch_norm(x, mean, var, scale, bias, update, 1.0 - momentum, epsilon)
    wide = F.batch_norm(
        x.to(mean.dtype), mean, var, scale.to(mean.dtype), bias.to(mean.dtype), update, 1.0 - momentum, epsilon
    )
    return wide.to(x.dtype)


@op("BatchNormalization", since=1, fixed=(3, 4), statistics=(3, 4), multiple=True)
def batch_normalization_1(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    is_test: int = 0,
    consumed_inputs: tuple[int, ...] = (),
    updates_statistics: bool = False,
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """Before opset 14. With spatial=0 every element of an example has statistics of its own."""
    if spatial == 0:
        return (((x - mean) / torch.sqrt(var + epsilon)) * scale + bias,)
    y = _normalise(x, scale, bias, mean, var, epsilon, momentum, updates_statistics)
    return (y, mean, var, mean, var)[:n_outputs]


@op("BatchNormalization", since=14, fixed=(3, 4), statistics=(3, 4), multiple=True)
def batch_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    updates_statistics: bool = False,
) -> tuple[torch.Tensor, ...]:
    """By the running statistics; by the batch's own, which also update the running ones, while the module trains.

    A graph's own training_mode=1 gives the updated statistics as outputs, from the population variance.
    """
    if not training_mode:
        return (_normalise(x, scale, bias, mean, var, epsilon, momentum, updates_statistics),)
    axes = (0, *range(2, x.dim()))
    batch_var, batch_mean = torch.var_mean(x.to(mean.dtype), dim=axes, correction=0)
    y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    return y, mean * momentum + batch_mean * (1 - momentum), var * momentum + batch_var * (1 - momentum)


@op("InstanceNormalization")
def instance_normalization(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, epsilon: float = 1e-5
) -> torch.Tensor:
    """Each channel of each example by its own mean and variance."""
    axes = tuple(range(2, x.dim()))
    var, mean = torch.var_mean(x, dim=axes, keepdim=True, correction=0)
    shape = (-1, *([1] * len(axes)))
    return (x - mean) * torch.rsqrt(var + epsilon) * scale.reshape(shape) + bias.reshape(shape)


@op("LayerNormalization", multiple=True)
def layer_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """Over all axes from `axis` on, worked out in float32; also gives the mean and the inverse deviation."""
    axis = axis % x.dim()
    if n_outputs == 1 and tuple(scale.shape) == tuple(x.shape[axis:]) and x.dtype == scale.dtype:
        return (F.layer_norm(x, x.shape[axis:], scale, bias, epsilon),)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    axes = tuple(range(axis, x.dim()))
    var, mean = torch.var_mean(wide, dim=axes, keepdim=True, correction=0)
    inverse = torch.rsqrt(var + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    return y if bias is None else y + bias, mean, inverse


@op("RMSNormalization")
def rms_normalization(
    x: torch.Tensor, scale: torch.Tensor, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> torch.Tensor:
    """x / sqrt(mean(x^2) + epsilon) * scale over all axes from `axis` on, worked out in float32."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    axes = tuple(range(axis % x.dim(), x.dim()))
    inverse = torch.rsqrt(wide.square().mean(dim=axes, keepdim=True) + epsilon)
    return (wide * inverse).to(x.dtype) * scale


@op("GroupNormalization", since=18)
def group_normalization_18(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, num_groups: int, epsilon: float = 1e-5
) -> torch.Tensor:
    """Opset 18 to 20: scale and bias are per group."""
    y = F.group_norm(x, num_groups, eps=epsilon).reshape(x.shape[0], num_groups, -1)
    return (y * scale.reshape(1, -1, 1) + bias.reshape(1, -1, 1)).reshape(x.shape)


@op("GroupNormalization", since=21)
def group_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> torch.Tensor:
    """Channels in groups, each group of each example by its own mean and variance; scale and bias per channel."""
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@op("LpNormalization")
def lp_normalization(x: torch.Tensor, axis: int = -1, p: int = 2) -> torch.Tensor:
    """x over its p-norm along an axis; zero where the norm is zero."""
    norm = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@op("MeanVarianceNormalization")
def mean_variance_normalization(
    x: torch.Tensor, axes: tuple[int, ...] = (0, 2, 3), across_channels: int = 0, normalize_variance: int = 1
) -> torch.Tensor:
    """(x - mean) / (deviation + 1e-9), as the function body of the ONNX specification has it."""
    mean = x.mean(dim=axes, keepdim=True)
    deviation = torch.sqrt((x * x).mean(dim=axes, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)


@op("LRN")
def lrn(x: torch.Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> torch.Tensor:
    """x / (bias + alpha/size * sum of squares over `size` neighbouring channels)^beta."""
    squares = x.square().movedim(1, -1)
    padded = F.pad(squares, ((size - 1) // 2, size - 1 - (size - 1) // 2))
    sums = padded.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * sums) ** beta


@op("SimplifiedLayerNormalization", multiple=True)
def simplified_layer_normalization(
    x: torch.Tensor, scale: torch.Tensor, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[torch.Tensor, ...]:
    """ONNX Runtime's RMS normalisation, which also gives the inverse root mean square."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    axes = tuple(range(axis % x.dim(), x.dim()))
    inverse = torch.rsqrt(wide.square().mean(dim=axes, keepdim=True) + epsilon)
    return (wide * inverse).to(scale.dtype) * scale, inverse


op("SimplifiedLayerNormalization", domain=MICROSOFT, multiple=True)(simplified_layer_normalization)


@op("SkipLayerNormalization", domain=MICROSOFT, multiple=True)
def skip_layer_normalization(
    x: torch.Tensor,
    skip: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    epsilon: float = 1e-12,
) -> tuple[torch.Tensor | None, ...]:
    """Layer normalisation of x + skip + bias, and that sum as the fourth output."""
    total = x + skip if bias is None else x + skip + bias
    y = F.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    return y, None, None, total


@op("SkipSimplifiedLayerNormalization", domain=MICROSOFT, multiple=True)
def skip_simplified_layer_normalization(
    x: torch.Tensor,
    skip: torch.Tensor,
    gamma: torch.Tensor,
    bias: torch.Tensor | None = None,
    epsilon: float = 1e-12,
) -> tuple[torch.Tensor | None, ...]:
    """RMS normalisation of x + skip + bias, and that sum as the fourth output."""
    total = x + skip if bias is None else x + skip + bias
    return rms_normalization(total, gamma, -1, epsilon), None, None, total


@op("GroupNorm", domain=MICROSOFT)
def group_norm_microsoft(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    groups: int,
    activation: int = 0,
    epsilon: float = 1e-5,
    channels_last: int = 1,
) -> torch.Tensor:
    """Group normalisation, by default with channels last, then SiLU if asked for."""
    x = x.movedim(-1, 1) if channels_last else x
    y = F.group_norm(x, groups, gamma.to(x.dtype), beta.to(x.dtype), epsilon)
    y = F.silu(y) if activation else y
    return y.movedim(1, -1) if channels_last else y
