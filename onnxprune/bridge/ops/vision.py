"""Sampling at computed places: GridSample, AffineGrid, DeformConv, RoiAlign, MaxRoiPool, Col2Im, NonMaxSuppression."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from onnxprune.bridge.registry import op


@op("AffineGrid", host=(1,))
def affine_grid(theta: torch.Tensor, size: list[int], align_corners: int = 0) -> torch.Tensor:
    """Sampling places in [-1, 1] for a grid of `size`, moved by affine matrices."""
    return F.affine_grid(theta, list(size), align_corners=bool(align_corners))


def _unnormalised(grid: torch.Tensor, sizes: Sequence[int], align_corners: bool) -> list[torch.Tensor]:
    """Places on each axis in input pixels; the last axis of the grid is x first."""
    places = []
    for axis, length in enumerate(sizes):
        g = grid[..., len(sizes) - 1 - axis]
        places.append((g + 1) / 2 * (length - 1) if align_corners else ((g + 1) * length - 1) / 2)
    return places


def _reflected(x: torch.Tensor, length: int, align_corners: bool) -> torch.Tensor:
    low, high = (0.0, length - 1.0) if align_corners else (-0.5, length - 0.5)
    span = high - low
    if span <= 0:
        return torch.zeros_like(x)
    distance = torch.remainder(x - low, 2 * span)
    return torch.where(distance > span, 2 * span - distance, distance) + low


def _sample(x: torch.Tensor, indices: Sequence[torch.Tensor], padding: str, align_corners: bool) -> torch.Tensor:
    """x (N, C, sizes) at whole-numbered places (N, places): (N, C, places), with the padding rule beyond the border."""
    n, c = x.shape[:2]
    inside = torch.ones_like(indices[0], dtype=torch.bool)
    flat = torch.zeros_like(indices[0], dtype=torch.int64)
    for place, length in zip(indices, x.shape[2:], strict=True):
        inside = inside & (place >= 0) & (place <= length - 1)
        if padding == "reflection":
            place = _reflected(place, length, align_corners)
        flat = flat * length + place.clamp(0, length - 1).to(torch.int64)
    values = torch.gather(x.reshape(n, c, -1), 2, flat.unsqueeze(1).expand(n, c, flat.shape[1]))
    return values * inside.unsqueeze(1).to(x.dtype) if padding == "zeros" else values


def _cubic(t: torch.Tensor, a: float = -0.75) -> list[torch.Tensor]:
    def far(d: torch.Tensor) -> torch.Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    def near(d: torch.Tensor) -> torch.Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


@op("GridSample")
def grid_sample(
    x: torch.Tensor,
    grid: torch.Tensor,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """x at the places of a grid in [-1, 1]: nearest, linear or cubic; zeros, border or reflection beyond."""
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    corners = bool(align_corners)
    if x.dim() in (4, 5) and x.is_floating_point() and not (mode == "cubic" and x.dim() == 5) and mode != "nearest":
        name = "bicubic" if mode == "cubic" else "bilinear"
        return F.grid_sample(x, grid.to(x.dtype), name, padding_mode, corners)
    spatial = x.dim() - 2
    flat = grid.reshape(grid.shape[0], -1, spatial)
    places = _unnormalised(flat, x.shape[2:], corners)
    if mode != "cubic" and padding_mode != "zeros":
        if padding_mode == "reflection":
            places = [_reflected(p, n, corners) for p, n in zip(places, x.shape[2:], strict=True)]
        places = [p.clamp(0, n - 1) for p, n in zip(places, x.shape[2:], strict=True)]
    result = _mix(x, places, mode, padding_mode, corners)
    return result.reshape(x.shape[0], x.shape[1], *grid.shape[1:-1])


def _mix(x: torch.Tensor, places: Sequence[torch.Tensor], mode: str, padding: str, corners: bool) -> torch.Tensor:
    """The weighted neighbours of each place, over all axes."""
    if mode == "nearest":
        return _sample(x, [torch.round(p) for p in places], padding, corners)
    offsets = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    lows = [torch.floor(p) for p in places]
    per_axis = [
        [1 - (p - low), p - low] if mode == "linear" else _cubic(p - low) for p, low in zip(places, lows, strict=True)
    ]
    total: torch.Tensor | None = None
    for combination in range(len(offsets) ** len(places)):
        weight = torch.ones_like(places[0])
        corner, rest = [], combination
        for low, weights in zip(lows, per_axis, strict=True):
            corner.append(low + offsets[rest % len(offsets)])
            weight = weight * weights[rest % len(offsets)]
            rest //= len(offsets)
        part = _sample(x, corner, padding, corners) * weight.unsqueeze(1).to(x.dtype)
        total = part if total is None else total + part
    assert total is not None
    return total


@op("DeformConv")
def deform_conv(
    x: torch.Tensor,
    w: torch.Tensor,
    offset: torch.Tensor,
    b: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    dilations: tuple[int, ...] = (),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    offset_group: int = 1,
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> torch.Tensor:
    """Convolution whose taps are moved by offsets (N, offset_group kernel rank, out...) and weighted by a mask."""
    rank = w.dim() - 2
    kernel = tuple(w.shape[2:])
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    pads = pads or (0,) * (2 * rank)
    n, channels, out = x.shape[0], x.shape[1], tuple(offset.shape[2:])
    taps = math.prod(kernel)
    moved = offset.reshape(n, offset_group, taps, rank, *out)
    places = []
    for axis in range(rank):
        outs = torch.arange(out[axis], device=x.device, dtype=x.dtype) * strides[axis] - pads[axis]
        steps = torch.arange(kernel[axis], device=x.device, dtype=x.dtype) * dilations[axis]
        grid = steps.reshape([-1 if d == axis else 1 for d in range(rank)]).expand(kernel).reshape(taps, *([1] * rank))
        base = grid + outs.reshape([-1 if d == axis else 1 for d in range(rank)])
        places.append((moved[:, :, :, axis] + base).reshape(n * offset_group, -1))
    split = x.reshape(n * offset_group, channels // offset_group, *x.shape[2:])
    columns = _mix(split, places, "linear", "zeros", True).reshape(n, offset_group, channels // offset_group, taps, -1)
    if mask is not None:
        columns = columns * mask.reshape(n, offset_group, 1, taps, -1)
    columns = columns.reshape(n, group, channels // group * taps, -1)
    weights = w.reshape(group, w.shape[0] // group, -1)
    y = torch.einsum("goc,ngcp->ngop", weights, columns).reshape(n, w.shape[0], *out)
    return y if b is None else y + b.reshape(-1, *([1] * rank))


def _roi_axis(
    start: torch.Tensor, size: torch.Tensor, bins: int, samples: int, length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each of bins * samples places on one axis: lower and upper pixel, share of the upper, whether it counts."""
    steps = (torch.arange(bins * samples, device=start.device, dtype=start.dtype) + 0.5) / samples
    place = start + steps * size
    counts = (place >= -1.0) & (place <= length)
    place = place.clamp(min=0)
    low = torch.floor(place).clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    share = torch.where(low >= length - 1, torch.zeros_like(place), place - low)
    return low.to(torch.int64), high.to(torch.int64), share, counts


def _roi_align(
    x: torch.Tensor,
    rois: torch.Tensor,
    batch_indices: torch.Tensor,
    shift: float,
    mode: str,
    height: int,
    width: int,
    ratio: int,
    scale: float,
) -> torch.Tensor:
    results = []
    for roi, image in zip(rois, batch_indices.tolist(), strict=True):
        x1, y1, x2, y2 = (roi * scale - shift).unbind()
        roi_w, roi_h = x2 - x1, y2 - y1
        if shift == 0.0:
            roi_w, roi_h = roi_w.clamp(min=1.0), roi_h.clamp(min=1.0)
        bin_w, bin_h = roi_w / width, roi_h / height
        across = ratio if ratio > 0 else max(1, math.ceil(float(bin_w)))
        down = ratio if ratio > 0 else max(1, math.ceil(float(bin_h)))
        top, bottom, ly, in_y = _roi_axis(y1, bin_h, height, down, x.shape[2])
        left, right, lx, in_x = _roi_axis(x1, bin_w, width, across, x.shape[3])
        plane = x[image]
        inside = (in_y.unsqueeze(1) & in_x.unsqueeze(0)).to(x.dtype)
        ly, lx = ly.unsqueeze(1), lx.unsqueeze(0)
        corners = [
            plane[:, top][:, :, left] * (1 - ly) * (1 - lx),
            plane[:, top][:, :, right] * (1 - ly) * lx,
            plane[:, bottom][:, :, left] * ly * (1 - lx),
            plane[:, bottom][:, :, right] * ly * lx,
        ]
        shape = (x.shape[1], height, down, width, across)
        if mode == "avg":
            results.append((sum(corners) * inside).reshape(shape).mean(dim=(2, 4)))
        else:
            largest = torch.stack(corners).amax(dim=0) * inside
            results.append(largest.reshape(shape).amax(dim=(2, 4)))
    return torch.stack(results) if results else x.new_zeros(0, x.shape[1], height, width)


@op("RoiAlign", since=10, fixed=(1, 2))
def roi_align_10(
    x: torch.Tensor,
    rois: torch.Tensor,
    batch_indices: torch.Tensor,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> torch.Tensor:
    """Before opset 16: without the half-pixel shift."""
    return _roi_align(x, rois, batch_indices, 0.0, mode, output_height, output_width, sampling_ratio, spatial_scale)


@op("RoiAlign", since=16, fixed=(1, 2))
def roi_align(
    x: torch.Tensor,
    rois: torch.Tensor,
    batch_indices: torch.Tensor,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> torch.Tensor:
    """Mean (or maximum) of bilinear samples in each bin of each region (He et al. 2017)."""
    shift = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    return _roi_align(x, rois, batch_indices, shift, mode, output_height, output_width, sampling_ratio, spatial_scale)


@op("MaxRoiPool", fixed=(1,))
def max_roi_pool(
    x: torch.Tensor, rois: torch.Tensor, pooled_shape: tuple[int, int], spatial_scale: float = 1.0
) -> torch.Tensor:
    """Largest of each bin of each region (image, x1, y1, x2, y2), whose borders are rounded (Girshick 2015)."""
    height, width = pooled_shape
    results = []
    for image, *borders in rois.tolist():
        x1, y1, x2, y2 = (math.floor(value * spatial_scale + 0.5) for value in borders)
        bin_h, bin_w = max(y2 - y1 + 1, 1) / height, max(x2 - x1 + 1, 1) / width
        rows = [(math.floor(i * bin_h) + y1, math.ceil((i + 1) * bin_h) + y1) for i in range(height)]
        columns = [(math.floor(j * bin_w) + x1, math.ceil((j + 1) * bin_w) + x1) for j in range(width)]
        plane = x[int(image)]
        cells = []
        for top, bottom in rows:
            for left, right in columns:
                cell = plane[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
                cells.append(cell.amax(dim=(1, 2)) if cell.numel() else x.new_zeros(x.shape[1]))
        results.append(torch.stack(cells, dim=1).reshape(x.shape[1], height, width))
    return torch.stack(results) if results else x.new_zeros(0, x.shape[1], height, width)


@op("Col2Im", host=(1, 2))
def col2im(
    x: torch.Tensor,
    image_shape: list[int],
    block_shape: list[int],
    dilations: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> torch.Tensor:
    """Blocks (N, C prod(block), count) summed into an image at their places."""
    rank = len(image_shape)
    dilations, strides = dilations or (1,) * rank, strides or (1,) * rank
    pads = pads or (0,) * (2 * rank)
    channels = x.shape[1] // math.prod(block_shape)
    padded = [n + pads[i] + pads[i + rank] for i, n in enumerate(image_shape)]
    places = torch.zeros((1,) * (2 * rank), dtype=torch.int64, device=x.device)
    for axis in range(rank):
        windows = (padded[axis] - dilations[axis] * (block_shape[axis] - 1) - 1) // strides[axis] + 1
        inner = torch.arange(block_shape[axis], device=x.device) * dilations[axis]
        outer = torch.arange(windows, device=x.device) * strides[axis]
        shape_inner = [-1 if d == axis else 1 for d in range(2 * rank)]
        shape_outer = [-1 if d == axis + rank else 1 for d in range(2 * rank)]
        places = places * padded[axis] + inner.reshape(shape_inner) + outer.reshape(shape_outer)
    flat = x.new_zeros(x.shape[0], channels, math.prod(padded))
    index = places.reshape(1, 1, -1).expand(x.shape[0], channels, -1)
    image = flat.scatter_add(2, index, x.reshape(x.shape[0], channels, -1)).reshape(x.shape[0], channels, *padded)
    for axis in range(rank):
        image = image.narrow(axis + 2, pads[axis], image_shape[axis])
    return image


def _overlap(box: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Intersection over union of one box (y1, x1, y2, x2) with others."""
    low = torch.maximum(box[:2], others[:, :2])
    high = torch.minimum(box[2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = (others[:, 2:] - others[:, :2]).prod(dim=1)
    union = (box[2:] - box[:2]).prod() + areas - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(union))


@op("NonMaxSuppression", host=(2, 3, 4), differentiable=False)
def non_max_suppression(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    max_output_boxes_per_class: int | list[int] | None = None,
    iou_threshold: float | list[float] | None = None,
    score_threshold: float | list[float] | None = None,
    center_point_box: int = 0,
) -> torch.Tensor:
    """Rows (batch, class, box) of the best boxes that overlap no better one by more than the threshold."""
    limit, overlap, least = (
        v[0] if isinstance(v, list) else v for v in (max_output_boxes_per_class, iou_threshold, score_threshold)
    )
    if center_point_box:
        centre, size = boxes[..., :2], boxes[..., 2:] / 2
        corners = torch.cat([(centre - size), (centre + size)], dim=-1)
    else:
        corners = torch.cat(
            [torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])], -1
        )
    rows = []
    for batch in range(scores.shape[0]):
        for kind in range(scores.shape[1]):
            order = torch.argsort(scores[batch, kind], descending=True, stable=True)
            if least is not None:
                order = order[scores[batch, kind][order] > least]
            taken = 0
            while order.numel() and taken < (limit or 0):
                best = order[0]
                rows.append([batch, kind, int(best)])
                taken += 1
                order = order[1:]
                order = order[_overlap(corners[batch, best], corners[batch, order]) <= (overlap or 0.0)]
    return torch.tensor(rows, dtype=torch.int64, device=scores.device).reshape(-1, 3)
