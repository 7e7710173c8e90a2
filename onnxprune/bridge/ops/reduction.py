"""Reductions, cumulative sums, and indices of extremes. Axes are attributes before opset 13 or 18, inputs after."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from onnxprune.bridge.ops.arithmetic import WIDE_UNSIGNED
from onnxprune.bridge.ops.host import listed
from onnxprune.bridge.registry import op

Reduce = Callable[[torch.Tensor, tuple[int, ...], bool], torch.Tensor]


def _sum(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return x.sum(dim=axes, keepdim=keep, dtype=None if x.is_floating_point() else torch.int64).to(x.dtype)


def _mean(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return (
        x.mean(dim=axes, keepdim=keep) if x.is_floating_point() else x.double().mean(dim=axes, keepdim=keep).to(x.dtype)
    )


def _extreme(x: torch.Tensor, axes: tuple[int, ...], keep: bool, largest: bool) -> torch.Tensor:
    if any(x.shape[axis] == 0 for axis in axes):
        bounds = (
            torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype) if x.dtype != torch.bool else None
        )
        edge = (
            (float("-inf") if largest else float("inf"))
            if x.is_floating_point()
            else ((not largest) if bounds is None else bounds.min if largest else bounds.max)
        )
        return _sum(x, axes, keep).fill_(edge)
    if x.dtype in WIDE_UNSIGNED:
        return _extreme(x.to(torch.int64), axes, keep, largest).to(x.dtype)
    return x.amax(dim=axes, keepdim=keep) if largest else x.amin(dim=axes, keepdim=keep)


def _product(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(dim=axis, keepdim=keep, dtype=x.dtype)
    return x


def _norm2(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    if not x.is_floating_point():
        return torch.sqrt(_sum(x * x, axes, keep).double()).to(x.dtype)
    norm: torch.Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=keep)
    return norm


def _log_sum_exp(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.logsumexp(x if x.is_floating_point() else x.double(), dim=axes, keepdim=keep).to(x.dtype)


_REDUCTIONS: dict[str, tuple[Reduce, int]] = {
    "ReduceSum": (_sum, 13),
    "ReduceMean": (_mean, 18),
    "ReduceMax": (lambda x, axes, keep: _extreme(x, axes, keep, True), 18),
    "ReduceMin": (lambda x, axes, keep: _extreme(x, axes, keep, False), 18),
    "ReduceProd": (_product, 18),
    "ReduceL1": (lambda x, axes, keep: _sum(torch.abs(x), axes, keep), 18),
    "ReduceL2": (_norm2, 18),
    "ReduceLogSum": (lambda x, axes, keep: torch.log(_sum(x, axes, keep)).to(x.dtype), 18),
    "ReduceLogSumExp": (_log_sum_exp, 18),
    "ReduceSumSquare": (lambda x, axes, keep: _sum(x * x, axes, keep), 18),
}


def _reduce(function: Reduce, x: torch.Tensor, axes: Sequence[int] | None, keepdims: int, noop: int) -> torch.Tensor:
    axes = [] if axes is None else listed(axes)
    chosen = tuple(axes) if axes else () if noop else tuple(range(x.dim()))
    if x.dim() == 0 or not chosen:
        reduced = function(x.unsqueeze(-1), (-1,), False)  # one element each: the operator's own function still applies
        return reduced
    return function(x, chosen, bool(keepdims))


def _register_reductions() -> None:
    for name, (function, inputs_since) in _REDUCTIONS.items():
        by_attribute, by_input = _reduction(name, function)
        op(name, since=1)(by_attribute)
        op(name, since=inputs_since, host=(1,))(by_input)


def _reduction(name: str, function: Reduce) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    def by_attribute(x: torch.Tensor, axes: Sequence[int] | None = None, keepdims: int = 1) -> torch.Tensor:
        return _reduce(function, x, axes, keepdims, 0)

    def by_input(
        x: torch.Tensor, axes: Sequence[int] | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> torch.Tensor:
        return _reduce(function, x, axes, keepdims, noop_with_empty_axes)

    snake = "reduce_" + "".join("_" + c.lower() if c.isupper() else c for c in name[6:]).lstrip("_")
    for run, spelled in ((by_attribute, snake + "_1"), (by_input, snake)):
        run.__name__ = run.__qualname__ = spelled
        run.__doc__ = f"{name} over the given axes, all if there are none."
        globals()[spelled] = run
    return by_attribute, by_input


_register_reductions()


@op("ArgMax", differentiable=False)
def arg_max(x: torch.Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> torch.Tensor:
    """Index of the largest element: the first of equal ones, or the last."""
    if select_last_index:
        return x.shape[axis] - 1 - torch.argmax(x.flip(axis), dim=axis, keepdim=bool(keepdims))
    return torch.argmax(x, dim=axis, keepdim=bool(keepdims))


@op("ArgMin", differentiable=False)
def arg_min(x: torch.Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> torch.Tensor:
    """Index of the smallest element: the first of equal ones, or the last."""
    if select_last_index:
        return x.shape[axis] - 1 - torch.argmin(x.flip(axis), dim=axis, keepdim=bool(keepdims))
    return torch.argmin(x, dim=axis, keepdim=bool(keepdims))


def _axis(axis: int | list[int]) -> int:
    return axis[0] if isinstance(axis, list) else axis


def _cumulative(
    x: torch.Tensor, axis: int, exclusive: int, reverse: int, run: Callable[..., torch.Tensor], neutral: int
) -> torch.Tensor:
    x = x.flip(axis) if reverse else x
    total = run(x, dim=axis, dtype=x.dtype)
    if exclusive:
        first = torch.full_like(x.narrow(axis, 0, 1), neutral)
        total = torch.cat([first, total.narrow(axis, 0, x.shape[axis] - 1)], dim=axis)
    return total.flip(axis) if reverse else total


@op("CumSum", host=(1,))
def cumsum(x: torch.Tensor, axis: int | list[int], exclusive: int = 0, reverse: int = 0) -> torch.Tensor:
    """Running sum along an axis; exclusive leaves each element itself out."""
    return _cumulative(x, _axis(axis), exclusive, reverse, torch.cumsum, 0)


@op("CumProd", host=(1,))
def cumprod(x: torch.Tensor, axis: int | list[int], exclusive: int = 0, reverse: int = 0) -> torch.Tensor:
    """Running product along an axis; exclusive leaves each element itself out."""
    return _cumulative(x, _axis(axis), exclusive, reverse, torch.cumprod, 1)


def _top(x: torch.Tensor, k: int, axis: int, largest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of equal elements the one with the lower index comes first, so the order is stable."""
    source = x.to(torch.int64) if x.dtype in WIDE_UNSIGNED else x
    values, indices = torch.sort(source, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, k).to(x.dtype), indices.narrow(axis, 0, k)


@op("TopK", since=1, multiple=True)
def top_k_1(x: torch.Tensor, k: int, axis: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """Before opset 10: k is an attribute."""
    return _top(x, k, axis, 1)


@op("TopK", since=10, host=(1,), multiple=True)
def top_k(
    x: torch.Tensor, k: int | list[int], axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest or smallest elements of an axis in order, and their indices."""
    return _top(x, _axis(k), axis, largest)
