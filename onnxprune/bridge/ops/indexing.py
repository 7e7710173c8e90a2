"""Gather, Scatter, OneHot, NonZero and other operators that work by index. Negative indices count from the end."""

from __future__ import annotations

import torch

from onnxprune.bridge.registry import op


def _wrapped(indices: torch.Tensor, extent: int) -> torch.Tensor:
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + extent, indices)


@op("Gather", fixed=(1,), carries=(0,))
def gather(x: torch.Tensor, indices: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """Entries of an axis by index; the axes of the indices take its place."""
    axis = axis % x.dim()
    places = _wrapped(indices, x.shape[axis])
    if indices.dim() == 1:
        return x.index_select(axis, places)
    if indices.dim() == 0:
        return x.index_select(axis, places.reshape(1)).squeeze(axis)
    taken = x.index_select(axis, places.reshape(-1))
    return taken.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


@op("GatherElements", fixed=(1,), carries=(0,))
def gather_elements(x: torch.Tensor, indices: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """One element for each index, along an axis."""
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


@op("GatherND", fixed=(1,), carries=(0,))
def gather_nd(x: torch.Tensor, indices: torch.Tensor, batch_dims: int = 0) -> torch.Tensor:
    """Slices by tuples of indices, which are the last axis."""
    batch = x.shape[:batch_dims]
    places = [_wrapped(indices[..., i], x.shape[batch_dims + i]) for i in range(indices.shape[-1])]
    rows = [
        torch.arange(extent, device=x.device).reshape([-1 if d == axis else 1 for d in range(indices.dim() - 1)])
        for axis, extent in enumerate(batch)
    ]
    return x[(*rows, *places)]


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("ScatterElements", "Scatter", fixed=(1,))
def scatter_elements(
    x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, axis: int = 0, reduction: str = "none"
) -> torch.Tensor:
    """Elements put at (or combined with those at) the given indices of an axis."""
    places, updates = _wrapped(indices, x.shape[axis]), updates.to(x.dtype)
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCE[reduction], include_self=True)


@op("ScatterND", fixed=(1,))
def scatter_nd(x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, reduction: str = "none") -> torch.Tensor:
    """Slices put at (or combined with those at) tuples of indices, which are the last axis."""
    depth = indices.shape[-1]
    updates = updates.to(x.dtype)
    if reduction in ("none", "add"):
        point = tuple(_wrapped(indices[..., i], x.shape[i]) for i in range(depth))
        return x.index_put(point, updates, accumulate=reduction == "add")
    rows = 1
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for i in range(depth):
        flat = flat * x.shape[i] + _wrapped(indices[..., i], x.shape[i])
        rows *= x.shape[i]
    matrix = x.reshape(rows, -1)
    places = flat.reshape(-1, 1).expand(-1, matrix.shape[1])
    combined = matrix.scatter_reduce(0, places, updates.reshape(-1, matrix.shape[1]), _REDUCE[reduction])
    return combined.reshape(x.shape)


@op("TensorScatter", fixed=(2,))
def tensor_scatter(
    past: torch.Tensor,
    update: torch.Tensor,
    write_indices: torch.Tensor | None = None,
    axis: int = -2,
    mode: str = "linear",
) -> torch.Tensor:
    """A cache with new rows written for each batch entry from its own index on, around the end if circular."""
    axis = axis % past.dim()
    length, new = past.shape[axis], update.shape[axis]
    steps = torch.arange(new, device=past.device).reshape(1, -1)
    if write_indices is not None:
        steps = steps + write_indices.reshape(-1, 1)
    steps = (steps % length if mode == "circular" else steps).expand(past.shape[0], new)
    shape = [past.shape[0] if d == 0 else new if d == axis else 1 for d in range(past.dim())]
    return past.scatter(axis, steps.reshape(shape).expand(update.shape), update)


@op("OneHot", host=(1,), fixed=(0, 2), differentiable=False)
def one_hot(indices: torch.Tensor, depth: int | list[int], values: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """values[1] at each index of a new axis, values[0] elsewhere; indices outside [-depth, depth) give no mark."""
    extent = int(depth[0] if isinstance(depth, list) else depth)
    places = indices.to(torch.int64)
    places = torch.where(places < 0, places + extent, places)
    marks = places.unsqueeze(-1) == torch.arange(extent, device=indices.device)
    return torch.where(marks, values[1], values[0]).movedim(-1, axis)


@op("NonZero", differentiable=False)
def non_zero(x: torch.Tensor) -> torch.Tensor:
    """Indices of the elements that are not zero, one column each."""
    return torch.nonzero(x if x.dim() else x.reshape(1)).t()


@op("Compress", fixed=(1,))
def compress(x: torch.Tensor, condition: torch.Tensor, axis: int | None = None) -> torch.Tensor:
    """The slices (or elements of the flattened input) at which the condition holds."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


@op("ReverseSequence", fixed=(1,))
def reverse_sequence(x: torch.Tensor, lengths: torch.Tensor, batch_axis: int = 1, time_axis: int = 0) -> torch.Tensor:
    """The first `length` steps of each batch entry in reverse order."""
    y = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(y.shape[1], device=x.device)
    lengths = lengths.reshape(-1, 1)
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)
    rows = torch.arange(y.shape[0], device=x.device).reshape(-1, 1)
    return y[rows, places].movedim((0, 1), (batch_axis, time_axis))


@op("Unique", multiple=True, differentiable=False)
def unique(x: torch.Tensor, axis: int | None = None, sorted: int = 1) -> tuple[torch.Tensor, ...]:
    """Different elements (or slices), where each is first, which one each input is, and how often it occurs."""
    flat = x.reshape(-1) if axis is None else x
    dim = 0 if axis is None else axis
    if flat.dim() == 1:
        values, inverse, counts = torch.unique(flat, return_inverse=True, return_counts=True)
    else:
        values, inverse, counts = torch.unique(flat, return_inverse=True, return_counts=True, dim=dim)
    order = torch.arange(inverse.numel(), device=x.device)
    first = torch.full((counts.numel(),), inverse.numel(), dtype=torch.int64, device=x.device)
    first = first.scatter_reduce(0, inverse.reshape(-1), order, "amin")
    if not sorted:
        by_first = torch.argsort(first)
        rank = torch.empty_like(by_first).scatter(0, by_first, torch.arange(by_first.numel(), device=x.device))
        values, first, counts, inverse = (
            values.index_select(dim, by_first),
            first[by_first],
            counts[by_first],
            rank[inverse],
        )
    return values, first, inverse.reshape(-1), counts
