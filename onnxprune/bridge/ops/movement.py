"""Data movement: shapes, axes, concatenation, padding, and type casts. Sizes arrive as Python ints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.bridge.convert import held_in
from onnxprune.bridge.dtypes import torch_dtype
from onnxprune.bridge.ops.arithmetic import WIDE_UNSIGNED
from onnxprune.bridge.ops.host import listed, slice_indices
from onnxprune.bridge.registry import EVERY_INPUT, op


@op("Identity", carries=(0,))
def identity(x: Any) -> Any:
    """The same."""
    return x


@op("Reshape", since=1, carries=(0,))
def reshape_1(x: torch.Tensor, shape: Sequence[int] = (), consumed_inputs: Sequence[int] = ()) -> torch.Tensor:
    """Before opset 5: the shape is an attribute."""
    return reshape(x, list(shape))


@op("Reshape", since=5, host=(1,), carries=(0,))
def reshape(x: torch.Tensor, shape: list[int], allowzero: int = 0) -> torch.Tensor:
    """Other extents: 0 copies the input's (unless allowzero), -1 is worked out."""
    if not allowzero and 0 in shape:
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return x.reshape(shape)


@op("Flatten", carries=(0,))
def flatten(x: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """A matrix: axes before `axis` by axes from it on."""
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() == 2:
        return x
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("Transpose", carries=(0,))
def transpose(x: torch.Tensor, perm: Sequence[int] | None = None) -> torch.Tensor:
    """Axes in another order, reversed if none is given."""
    return x.permute(tuple(perm) if perm is not None else tuple(reversed(range(x.dim()))))


@op("Squeeze", since=1, carries=(0,))
def squeeze_1(x: torch.Tensor, axes: Sequence[int] | None = None) -> torch.Tensor:
    """Before opset 13: axes are an attribute."""
    return squeeze(x, axes)


@op("Squeeze", since=13, host=(1,), carries=(0,))
def squeeze(x: torch.Tensor, axes: Sequence[int] | int | None = None) -> torch.Tensor:
    """Without the given axes of extent one, or without all of them."""
    return x.squeeze() if axes is None else x.squeeze(tuple(listed(axes)))


@op("Unsqueeze", since=1, carries=(0,))
def unsqueeze_1(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Before opset 13: axes are an attribute."""
    return unsqueeze(x, axes)


@op("Unsqueeze", since=13, host=(1,), carries=(0,))
def unsqueeze(x: torch.Tensor, axes: Sequence[int] | int) -> torch.Tensor:
    """With axes of extent one at the given places of the result."""
    places = listed(axes)
    rank = x.dim() + len(places)
    for axis in sorted(axis % rank for axis in places):
        x = x.unsqueeze(axis)
    return x


@op("Concat", carries=EVERY_INPUT)
def concat(*values: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """Tensors one after another along an axis."""
    return torch.cat(values, dim=axis)


def _pieces(x: torch.Tensor, sizes: Sequence[int] | None, axis: int, count: int) -> tuple[torch.Tensor, ...]:
    if sizes is None:
        step = -(-x.shape[axis] // count)
        sizes = [step] * (x.shape[axis] // step)
        sizes += [x.shape[axis] - sum(sizes)] if sum(sizes) < x.shape[axis] else []
        sizes += [0] * (count - len(sizes))
    return torch.split(x, list(sizes), dim=axis)


@op("Split", since=1, multiple=True, carries=(0,))
def split_1(
    x: torch.Tensor, split: Sequence[int] | None = None, axis: int = 0, n_outputs: int = 1
) -> tuple[torch.Tensor, ...]:
    """Before opset 13: the sizes are an attribute."""
    return _pieces(x, split, axis, n_outputs)


@op("Split", since=13, host=(1,), multiple=True, carries=(0,))
def split(
    x: torch.Tensor,
    split: Sequence[int] | None = None,
    axis: int = 0,
    num_outputs: int | None = None,
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """Pieces of the given sizes, or equal ones, the last of which may be smaller."""
    return _pieces(x, split, axis, num_outputs or n_outputs)


def _cut(x: torch.Tensor, start: int, end: int, axis: int, step: int) -> torch.Tensor:
    length = x.shape[axis]
    if step == 1:
        low = min(max(start + length if start < 0 else start, 0), length)
        high = min(max(end + length if end < 0 else end, 0), length)
        return x if (low, high) == (0, length) else x.narrow(axis, low, max(high - low, 0))
    taken = slice_indices(length, start, end, step)
    if step > 1:
        return x[(slice(None),) * axis + (slice(taken.start, max(taken.stop, taken.start), step),)]
    return x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64, device=x.device))


@op("Slice", since=1, carries=(0,))
def slice_1(
    x: torch.Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None
) -> torch.Tensor:
    """Before opset 10: bounds are attributes."""
    return slice_tensor(x, starts, ends, axes)


@op("Slice", since=10, host=(1, 2, 3, 4), carries=(0,))
def slice_tensor(
    x: torch.Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> torch.Tensor:
    """Parts of axes by start, end and step; a negative step runs backwards."""
    starts, ends = listed(starts), listed(ends)
    axes = range(len(starts)) if axes is None else listed(axes)
    steps = [1] * len(starts) if steps is None else listed(steps)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _cut(x, start, end, axis % x.dim(), step)
    return x


@op("Expand", host=(1,), carries=(0,))
def expand(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Broadcast to a shape, which itself broadcasts with the input's."""
    rank = max(len(shape), x.dim())
    wanted = [1] * (rank - len(shape)) + list(shape)
    extents = [1] * (rank - x.dim()) + list(x.shape)
    return x.expand([n if n != 1 else w for n, w in zip(extents, wanted, strict=True)])


@op("Tile", host=(1,), carries=(0,))
def tile(x: torch.Tensor, repeats: Sequence[int]) -> torch.Tensor:
    """Repeated along each axis."""
    return x.repeat(tuple(repeats))


def pad_tensor(x: torch.Tensor, begin: Sequence[int], end: Sequence[int], mode: str, value: Any) -> torch.Tensor:
    """Pad every axis (negative amounts cut): constant, edge, reflect or wrap."""
    for axis, (low, high) in enumerate(zip(begin, end, strict=True)):
        cut_low, cut_high = max(-low, 0), max(-high, 0)
        if cut_low or cut_high:
            x = x.narrow(axis, cut_low, x.shape[axis] - cut_low - cut_high)
    low_high = [(max(low, 0), max(high, 0)) for low, high in zip(begin, end, strict=True)]
    if mode == "constant":
        amounts = [n for pair in reversed(low_high) for n in pair]
        if x.dtype in WIDE_UNSIGNED or x.dtype == torch.bool:
            return F.pad(x.to(torch.int64), amounts, value=value or 0).to(x.dtype)
        return F.pad(x, amounts, value=value or 0)
    for axis, (low, high) in enumerate(low_high):
        if low or high:
            x = x.index_select(axis, _border(x.shape[axis], low, high, mode).to(x.device))
    return x


def _border(length: int, low: int, high: int, mode: str) -> torch.Tensor:
    """Which element each place of a padded axis shows."""
    places = torch.arange(-low, length + high)
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    if mode == "reflect":
        period = max(2 * (length - 1), 1)
        places = places % period
        return torch.where(places < length, places, period - places)
    raise ValueError(f"Pad has no mode {mode!r}")


@op("Pad", since=1, carries=(0,))
def pad_1(
    x: torch.Tensor, pads: Sequence[int] = (), mode: str = "constant", value: float = 0.0, paddings: Sequence[int] = ()
) -> torch.Tensor:
    """Before opset 11: amounts and value are attributes."""
    amounts = pads or paddings
    return pad_tensor(x, amounts[: x.dim()], amounts[x.dim() :], mode, value)


@op("Pad", since=11, host=(1, 3), scalar=(2,), carries=(0,))
def pad(
    x: torch.Tensor,
    pads: Sequence[int],
    constant_value: float | torch.Tensor | None = None,
    axes: Sequence[int] | None = None,
    mode: str = "constant",
) -> torch.Tensor:
    """Amounts at the beginning of all (or the given) axes, then at their ends."""
    value = constant_value.item() if isinstance(constant_value, torch.Tensor) else constant_value
    if axes is None:
        return pad_tensor(x, pads[: x.dim()], pads[x.dim() :], mode, value)
    begin, end = [0] * x.dim(), [0] * x.dim()
    for position, axis in enumerate(axes):
        begin[axis], end[axis] = pads[position], pads[position + len(axes)]
    return pad_tensor(x, begin, end, mode, value)


@op("CenterCropPad", host=(1,))
def center_crop_pad(x: torch.Tensor, shape: Sequence[int], axes: Sequence[int] | None = None) -> torch.Tensor:
    """Cut or pad with zeros around the centre."""
    for axis, wanted in zip(range(x.dim()) if axes is None else axes, shape, strict=True):
        have = x.shape[axis]
        if have > wanted:
            x = x.narrow(axis, (have - wanted) // 2, wanted)
        elif have < wanted:
            begin, end = [0] * x.dim(), [0] * x.dim()
            begin[axis] = (wanted - have) // 2
            end[axis] = wanted - have - begin[axis]
            x = pad_tensor(x, begin, end, "constant", 0)
    return x


@op("DepthToSpace", carries=(0,))
def depth_to_space(x: torch.Tensor, blocksize: int, mode: str = "DCR") -> torch.Tensor:
    """(N, C b b, H, W) to (N, C, H b, W b), the blocks outermost (DCR) or innermost (CRD) in the channels."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return F.pixel_shuffle(x, b)
    return x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


@op("SpaceToDepth", carries=(0,))
def space_to_depth(x: torch.Tensor, blocksize: int, mode: str = "DCR") -> torch.Tensor:
    """(N, C, H b, W b) to (N, C b b, H, W)."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return F.pixel_unshuffle(x, b)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


@op("ConstantOfShape", host=(0,), differentiable=False)
def constant_of_shape(
    shape: Sequence[int], value: tuple[Any, str] = (0.0, "FLOAT"), device: torch.device | None = None
) -> torch.Tensor:
    """A tensor of one number."""
    return torch.full(tuple(shape), value[0], dtype=held_in(value[1]), device=device)


@op("EyeLike", differentiable=False)
def eye_like(x: torch.Tensor, dtype: int | None = None, k: int = 0) -> torch.Tensor:
    """Ones on the k-th diagonal of a matrix of x's extents."""
    rows, columns = x.shape
    ones = torch.ones(rows, columns, dtype=torch.int64, device=x.device)
    diagonal = torch.triu(ones, k) - torch.triu(ones, k + 1)
    return diagonal.to(x.dtype if dtype is None else torch_dtype(dtype))


@op("Range", host=(0, 1, 2), differentiable=False)
def range_of(
    start: Any,
    limit: Any,
    delta: Any,
    stash_type: int = 1,
    input_types: tuple[str | None, ...] = (),
    device: torch.device | None = None,
) -> torch.Tensor:
    """start, start + delta, ... below (or above) limit."""
    known = next((name for name in input_types if name), "FLOAT" if isinstance(start, float) else "INT64")
    start, limit, delta = (v[0] if isinstance(v, list) else v for v in (start, limit, delta))
    count = max(0, math.ceil((limit - start) / delta))
    wide = torch.int64 if isinstance(start, int) else torch.float64
    numbers: torch.Tensor = torch.arange(count, device=device, dtype=wide) * delta + start
    return numbers.to(held_in(known))
