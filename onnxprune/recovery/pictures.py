"""Crops, mirror images, small warps and mixtures of pictures: more inputs for networks that see pictures.

augment = augmentation(dense, feed)          None where the inputs are no pictures, or the model minds all of it
feed = augment(feed, rng)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.graph.hints import Feeds
from onnxprune.runtime.session import make_session, run

Array = npt.NDArray[Any]
Augment = Callable[[Mapping[str, Array], np.random.Generator], Feeds]

_SMALLEST = 16  # pixels: smaller ones are left as they are
_LEAST = 0.35  # of the area, of a crop
_TURN, _SCALE, _SHEAR, _SHIFT = 0.2, 0.15, 0.1, 0.1  # of a warp, at most: radians, shares, shares of half the side
_MIXED = 0.5  # share of pictures that are mixed with another
_TOLERATED = 0.25


def augmentation(dense: ir.Model, feed: Mapping[str, Array]) -> Augment | None:
    """Return what draws other pictures from pictures.

    Inputs are pictures where the model has one float input [N, C, H, W] of 1, 3 or 4 channels. A model that tolerates
    mirror images gets crops and mirror images, as photographs do. One that does not, such as a reader of digits, gets
    small warps, if it tolerates these. It tolerates a change that moves its outputs by less than a quarter of what
    another picture does, in squares.
    """
    floats = [name for name, array in feed.items() if array.ndim == 4 and array.dtype.kind == "f"]
    if len(feed) != 1 or len(floats) != 1:
        return None
    name = floats[0]
    batch = feed[name]
    if batch.shape[1] not in (1, 3, 4) or min(batch.shape[2:]) < _SMALLEST or len(batch) < 2:
        return None
    if _tolerated(dense, name, batch, np.ascontiguousarray(batch[..., ::-1])):
        change = _cropped
    elif _tolerated(dense, name, batch, _changed(batch, np.random.default_rng(0), _warped)):
        change = _warped
    else:
        return None
    return lambda values, rng: {name: _mixed(_changed(values[name], rng, change), rng)}


def _tolerated(dense: ir.Model, name: str, batch: Array, changed: Array) -> bool:
    session = make_session(dense)
    plain, other = run(session, {name: batch}), run(session, {name: changed})
    for key, output in plain.items():
        if output.dtype.kind != "f" or output.shape[:1] != batch.shape[:1]:
            continue
        moved = np.square(other[key].astype(np.float64) - output).mean()
        between = np.square(np.roll(output, 1, axis=0).astype(np.float64) - output).mean()
        if not moved < _TOLERATED * between:
            return False
    return True


def _changed(batch: Array, rng: np.random.Generator, change: Callable[[Tensor, np.random.Generator], Tensor]) -> Array:
    pictures = torch.from_numpy(np.array(batch, np.float32))
    drawn: Array = torch.cat([change(picture[None], rng) for picture in pictures]).numpy()
    return drawn.astype(batch.dtype)


def _cropped(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """A crop at the size of the whole, mirrored or not."""
    height, width = picture.shape[2:]
    side = rng.uniform(_LEAST, 1) ** 0.5
    h, w = max(1, round(height * side)), max(1, round(width * side))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    crop = picture[:, :, top : top + h, left : left + w]
    crop = F.interpolate(crop, (height, width), mode="bilinear", align_corners=False)
    return crop.flip(3) if rng.random() < 0.5 else crop


def _warped(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """The picture turned, scaled, sheared and moved a little; what comes in at the edge repeats the edge."""
    turn, shear = rng.uniform(-_TURN, _TURN), rng.uniform(-_SHEAR, _SHEAR)
    scale, (x, y) = 1 + rng.uniform(-_SCALE, _SCALE), rng.uniform(-_SHIFT, _SHIFT, 2)
    cosine, sine = np.cos(turn), np.sin(turn)
    matrix = torch.tensor([[[scale * cosine, shear - sine, x], [sine, scale * cosine, y]]], dtype=torch.float32)
    grid = F.affine_grid(matrix, list(picture.shape), align_corners=False)
    return F.grid_sample(picture, grid, padding_mode="border", align_corners=False)


def _mixed(batch: Array, rng: np.random.Generator) -> Array:
    """Half of the pictures mixed with up to as much of another."""
    share = np.where(rng.random(len(batch)) < _MIXED, rng.uniform(0, 0.5, len(batch)), 0.0).astype(np.float32)
    share = share.reshape(-1, 1, 1, 1)
    mixed: Array = (1 - share) * batch + share * batch[rng.permutation(len(batch))]
    return mixed.astype(batch.dtype)
