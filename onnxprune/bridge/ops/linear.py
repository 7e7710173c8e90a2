"""Contractions: MatMul, Gemm, Einsum, and what is made of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from onnxprune.bridge.registry import op


@op("MatMul")
def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix product by numpy's rules; integers of any width are multiplied exactly."""
    if a.is_floating_point() or a.is_complex():
        return torch.matmul(a, b)
    return torch.matmul(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)


@op("Gemm", since=1)
def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    broadcast: int = 0,
) -> torch.Tensor:
    """alpha * A' B' + beta * C, where C broadcasts to (M, N) and may be left out."""
    usual = transB and not transA and alpha == 1.0 and beta == 1.0 and a.is_floating_point()
    if usual and (c is None or (c.dim() == 1 and c.shape[0] == b.shape[0])):
        return F.linear(a, b, c)
    a = a.t() if transA else a
    b = b.t() if transB else b
    if not a.is_floating_point():
        product = matmul(a, b)
        product = product if alpha == 1.0 else (product * alpha).to(a.dtype)
        return product if c is None else product + (c if beta == 1.0 else (c * beta).to(a.dtype))
    if c is not None:
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    product = torch.mm(a, b)
    return product if alpha == 1.0 else product * alpha


@op("Einsum")
def einsum(*operands: torch.Tensor, equation: str) -> torch.Tensor:
    """Einstein's summation convention."""
    return torch.einsum(equation.replace(" ", ""), *operands)


@op("Det")
def det(x: torch.Tensor) -> torch.Tensor:
    """Determinants of the last two axes."""
    result: torch.Tensor = torch.linalg.det(x)
    return result


@op("Trilu", host=(1,))
def trilu(x: torch.Tensor, k: int | list[int] | None = None, upper: int = 1) -> torch.Tensor:
    """The upper or lower triangle of the last two axes."""
    diagonal = 0 if k is None else k[0] if isinstance(k, list) else k
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)
