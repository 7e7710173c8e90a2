"""Crops, mirror images and mixtures of pictures: more inputs for networks that see pictures.

augment = augmentation(dense, feed)          None where the inputs are no pictures, or the model minds mirror images
feed = augment(feed, rng)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch.nn import functional as F

from onnxprune.graph.hints import Feeds
from onnxprune.runtime.session import make_session, run

Array = npt.NDArray[Any]
Augment = Callable[[Mapping[str, Array], np.random.Generator], Feeds]

_SMALLEST = 16  # pixels: smaller ones are not cut
_LEAST = 0.35  # of the area, of a crop
_MIXED = 0.5  # share of pictures that are mixed with another
_TOLERATED = 0.25


def augmentation(dense: ir.Model, feed: Mapping[str, Array]) -> Augment | None:
    """Return what draws other pictures from pictures.

    Inputs are pictures where the model has one float input [N, C, H, W] of 1, 3 or 4 channels. The dense model
    tolerates them where a mirror image moves its outputs by less than a quarter of what another picture does, in
    squares.
    """
    floats = [name for name, array in feed.items() if array.ndim == 4 and array.dtype.kind == "f"]
    if len(feed) != 1 or len(floats) != 1:
        return None
    name = floats[0]
    batch = feed[name]
    if batch.shape[1] not in (1, 3, 4) or min(batch.shape[2:]) < _SMALLEST or len(batch) < 2:
        return None
    if not _tolerated(dense, name, batch):
        return None
    return lambda values, rng: {name: _drawn(values[name], rng)}


def _tolerated(dense: ir.Model, name: str, batch: Array) -> bool:
    session = make_session(dense)
    plain, mirrored = run(session, {name: batch}), run(session, {name: np.ascontiguousarray(batch[..., ::-1])})
    for key, output in plain.items():
        if output.dtype.kind != "f" or output.shape[:1] != batch.shape[:1]:
            continue
        moved = np.square(mirrored[key].astype(np.float64) - output).mean()
        between = np.square(np.roll(output, 1, axis=0).astype(np.float64) - output).mean()
        if not moved < _TOLERATED * between:
            return False
    return True


def _drawn(batch: Array, rng: np.random.Generator) -> Array:
    """A crop of each picture, at the size of the whole, some mirrored, some mixed with another."""
    pictures = torch.from_numpy(np.array(batch, np.float32))
    height, width = pictures.shape[2:]
    drawn = []
    for picture in pictures:
        side = rng.uniform(_LEAST, 1) ** 0.5
        h, w = max(1, round(height * side)), max(1, round(width * side))
        top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        crop = picture[None, :, top : top + h, left : left + w]
        crop = F.interpolate(crop, (height, width), mode="bilinear", align_corners=False)
        drawn.append(crop.flip(3) if rng.random() < 0.5 else crop)
    made = torch.cat(drawn)
    share = torch.from_numpy(np.where(rng.random(len(made)) < _MIXED, rng.uniform(0, 0.5, len(made)), 0.0)).float()
    share = share.reshape(-1, 1, 1, 1)
    mixed = (1 - share) * made + share * made[torch.from_numpy(rng.permutation(len(made)))]
    return mixed.numpy().astype(batch.dtype)
