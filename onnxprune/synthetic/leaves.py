"""Pictures of opaque things that lie on each other: what gives natural pictures their edges, which noise lacks.

Leaves of all sizes r, as many of each as r^-p says, fall until they cover everything (Lee, Mumford and Huang 2001,
"Occlusion Models for Natural Images", sections 3 and 4). Networks that have learned from such pictures alone recognise
natural ones (Baradad et al. 2021, "Learning to See by Looking at Noise"). What differs from picture to picture here is
drawn for each: how small leaves get, p, their colours, their textures (noise of spectrum 1 / f^a) and their shading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.synthetic.noise import amplitudes, coloured, signal

Array = npt.NDArray[Any]

_LEAST_SIDE = 16  # of a picture: in a smaller one a leaf is a few pixels
_LEAVES = 400  # that fall at most; what they leave empty is background
_SMALLEST, _LARGEST = (0.015, 0.35), 0.7  # radius, by the shorter side: the range of the least, and the most
_POWERS = (1.5, 3.0)  # p
_TEXTURES, _SLOPES = 4, (0.5, 2.2)  # so many in a picture; the slopes of their spectra
_DEPTHS = (0.1, 0.9)  # of a texture, by the deviation of colours
_MOST = 2.5  # deviations: the range of a picture is limited

Shape = Callable[[Array, Array, float], Array]
_SHAPES: Sequence[Shape] = (  # from places along and across, by the radius, and how long the leaf is: what is inside
    lambda u, v, long: u**2 + (v * long) ** 2 < 1,
    lambda u, v, long: u**2 + (v * long) ** 2 < 1 + np.cos(5 * np.arctan2(v, u)) / 3,
    lambda u, v, long: (abs(u) < 1) & (abs(v) < 1 / long),
    lambda u, v, long: (v > -1 / long) & (v < 1 - 2 * abs(u)),
)


def is_picture(places: tuple[int, ...]) -> bool:
    """Whether a signal of these extents is a picture in which leaves can be told."""
    return len(places) == 2 and min(places) >= _LEAST_SIDE


def pictures(rng: np.random.Generator, count: int, channels: int, places: tuple[int, ...]) -> Array:
    """Draw pictures.

    Args:
        rng: What is drawn comes from it.
        count: How many.
        channels: Colours.
        places: Height and width, see `is_picture`.

    Returns:
        Shape [count, channels, height, width], float32; mean about 0, variance about 1, the colours go together.
    """
    return np.stack([_picture(rng, channels, places) for _ in range(count)])


def _picture(rng: np.random.Generator, channels: int, places: tuple[int, ...]) -> Array:
    side, vary = min(places), rng.uniform(0.2, 1)
    power, least = rng.uniform(*_POWERS), np.exp(rng.uniform(*np.log(_SMALLEST)))
    radii = side * _sizes(rng.random(_LEAVES), float(least), power)
    white = rng.standard_normal((_TEXTURES, channels, *places))
    textures = signal(coloured(white), amplitudes(places, rng.uniform(*_SLOPES, _TEXTURES)))
    colours = coloured(rng.standard_normal((_LEAVES + 1, channels)))[..., None, None]
    mean = vary * coloured(rng.standard_normal((1, channels)))[0, :, None, None] / 2
    picture = mean + 0.8 * colours[-1] + _DEPTHS[0] * textures[0]
    empty = np.ones(places, bool)
    for radius, colour in zip(radii, colours[:-1], strict=True):
        if not empty.any():
            break
        centre = rng.uniform(-radius, np.add(places, radius))
        box = tuple(
            slice(max(0, int(at - 1.5 * radius)), min(extent, int(at + 1.5 * radius) + 1))
            for at, extent in zip(centre, places, strict=True)
        )
        inside = _inside(rng, box, centre, radius) & empty[box]
        if inside.any():
            down = (np.arange(places[0])[box[0]] - centre[0])[:, None] / radius
            shade = vary * rng.standard_normal() * down
            texture = rng.uniform(*_DEPTHS) * textures[int(rng.integers(_TEXTURES))][:, box[0], box[1]]
            picture[:, box[0], box[1]][:, inside] = (mean + 0.8 * colour + texture + shade)[:, inside]
            empty[box] &= ~inside
    return np.clip(picture, -_MOST, _MOST).astype(np.float32)


def _sizes(uniform: Array, least: float, power: float) -> Array:
    """Radii between the least and the largest, of density r^-power."""
    e = 1 - power
    return np.asarray((least**e + uniform * (_LARGEST**e - least**e)) ** (1 / e))


def _inside(rng: np.random.Generator, box: tuple[slice, ...], centre: Array, radius: float) -> Array:
    """Which pixels of a box are those of a leaf: one of the shapes, turned and drawn out at random."""
    angle, long = rng.uniform(0, np.pi), rng.uniform(1, 3)
    y, x = (np.arange(part.start, part.stop) - at for part, at in zip(box, centre, strict=True))
    u = (x[None] * np.cos(angle) + y[:, None] * np.sin(angle)) / radius
    v = (y[:, None] * np.cos(angle) - x[None] * np.sin(angle)) / radius
    return _SHAPES[int(rng.integers(len(_SHAPES)))](u, v, long)
