"""Activation functions, Softmax and its kin, and Dropout."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from onnxprune.bridge.registry import MICROSOFT, op


@op("Relu")
def relu(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)."""
    return torch.relu(x)


@op("LeakyRelu")
def leaky_relu(x: torch.Tensor, alpha: float = 0.01) -> torch.Tensor:
    """x, or alpha x below zero."""
    return F.leaky_relu(x, alpha)


@op("PRelu")
def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """x, or slope * x below zero; the slope broadcasts to x (before opset 7: along the channels)."""
    if slope.dim() == 1 and x.dim() > 1 and slope.shape[0] > 1 and slope.shape[0] not in (x.shape[-1],):
        slope = slope.reshape(-1, *([1] * (x.dim() - 2)))
    return torch.where(x < 0, slope * x, x)


@op("ThresholdedRelu")
def thresholded_relu(x: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """x where it is above alpha, zero elsewhere."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@op("Elu")
def elu(x: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """x, or alpha (e^x - 1) below zero."""
    return F.elu(x, alpha)


@op("Celu")
def celu(x: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """max(0, x) + min(0, alpha (e^(x/alpha) - 1))."""
    return F.celu(x, alpha)


@op("Selu")
def selu(x: torch.Tensor, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> torch.Tensor:
    """gamma x, or gamma alpha (e^x - 1) below zero."""
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


@op("Sigmoid")
def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """1 / (1 + e^-x)."""
    return torch.sigmoid(x)


@op("HardSigmoid")
def hard_sigmoid(x: torch.Tensor, alpha: float = 0.2, beta: float = 0.5) -> torch.Tensor:
    """alpha x + beta, cut off at 0 and 1."""
    return torch.clamp(x * alpha + beta, 0, 1)


@op("HardSwish")
def hard_swish(x: torch.Tensor) -> torch.Tensor:
    """x * max(0, min(1, x/6 + 1/2))."""
    return F.hardswish(x)


@op("Tanh")
def tanh(x: torch.Tensor) -> torch.Tensor:
    """Hyperbolic tangent."""
    return torch.tanh(x)


@op("Softplus")
def softplus(x: torch.Tensor) -> torch.Tensor:
    """ln(1 + e^x), without overflow."""
    return F.softplus(x, threshold=80)


@op("Softsign")
def softsign(x: torch.Tensor) -> torch.Tensor:
    """x / (1 + |x|)."""
    return x / (1 + torch.abs(x))


@op("Mish")
def mish(x: torch.Tensor) -> torch.Tensor:
    """x * tanh(softplus(x))."""
    return F.mish(x)


@op("Swish")
def swish(x: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """x * sigmoid(alpha x)."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@op("Gelu")
def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """x * Phi(x), exactly or by tanh."""
    return F.gelu(x, approximate=approximate)


@op("SwiGLU")
def swiglu(gate: torch.Tensor, value: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """Swish of the gate times the value."""
    return swish(gate, alpha) * value


@op("Shrink")
def shrink(x: torch.Tensor, bias: float = 0.0, lambd: float = 0.5) -> torch.Tensor:
    """x moved by the bias towards zero outside [-lambd, lambd], zero inside."""
    kept = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, kept).to(x.dtype)


def _as_matrix(x: torch.Tensor, axis: int) -> torch.Tensor:
    axis = axis % x.dim() if x.dim() else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


@op("Softmax", since=1)
def softmax_1(x: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """Before opset 13: over all axes from `axis` on, flattened."""
    return torch.softmax(_as_matrix(x, axis), dim=1).reshape(x.shape)


@op("Softmax", since=13)
def softmax(x: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """Over one axis."""
    return torch.softmax(x, dim=axis)


@op("LogSoftmax", since=1)
def log_softmax_1(x: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """Before opset 13: over all axes from `axis` on, flattened."""
    return torch.log_softmax(_as_matrix(x, axis), dim=1).reshape(x.shape)


@op("LogSoftmax", since=13)
def log_softmax(x: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """Over one axis."""
    return torch.log_softmax(x, dim=axis)


@op("Hardmax", since=1, differentiable=False)
def hardmax_1(x: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """Before opset 13: over all axes from `axis` on, flattened."""
    return hardmax(_as_matrix(x, axis), 1).reshape(x.shape)


@op("Hardmax", since=13, differentiable=False)
def hardmax(x: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """One at the first largest element of an axis, zero elsewhere."""
    return torch.zeros_like(x).scatter(axis, torch.argmax(x, dim=axis, keepdim=True), 1)


@op("Dropout", since=1, multiple=True)
def dropout_1(
    x: torch.Tensor, ratio: float = 0.5, is_test: int = 0, training: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Before opset 12: the ratio is an attribute, the mask is of x's type before opset 10."""
    y = F.dropout(x, ratio, training)
    return y, torch.ones_like(x, dtype=torch.bool)


@op("Dropout", since=12, scalar=(1, 2), fixed=(1, 2), multiple=True)
def dropout(
    x: torch.Tensor,
    ratio: float | torch.Tensor | None = None,
    training_mode: bool | torch.Tensor | None = None,
    seed: int = 0,
    training: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Elements are set to zero with probability `ratio` while the module trains, or where the graph says so.

    In `eval()` a graph's own training_mode=true holds, as the file asks for it.
    """
    rate = 0.5 if ratio is None else float(ratio)
    if not (training or bool(training_mode)) or rate == 0.0:
        return x, torch.ones_like(x, dtype=torch.bool)
    mask = torch.rand_like(x, dtype=torch.float32) >= rate
    return torch.where(mask, x / (1 - rate), torch.zeros_like(x)), mask


@op("Gelu", domain=MICROSOFT)
def gelu_microsoft(x: torch.Tensor) -> torch.Tensor:
    """x * Phi(x)."""
    return F.gelu(x)


@op("FastGelu", domain=MICROSOFT)
def fast_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """GELU by tanh, of x + bias."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@op("BiasGelu", domain=MICROSOFT)
def bias_gelu(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x * Phi(x) of x + bias."""
    return F.gelu(x + bias)


@op("QuickGelu", domain=MICROSOFT)
def quick_gelu(x: torch.Tensor, alpha: float = 1.702) -> torch.Tensor:
    """x * sigmoid(alpha x)."""
    return x * torch.sigmoid(alpha * x)


@op("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """First half of x + bias times the GELU of the second."""
    left, right = torch.chunk(x + bias, 2, dim=-1)
    return left * F.gelu(right)
