"""Noise with the spectrum of natural pictures, sound and video.

Along its places (height and width, or time) the amplitude of a natural signal falls with the frequency as 1 / f^a, a
about 1 (Field 1987), for single pictures between .7 and 2 (Tolhurst et al. 1992). Colours of a picture go together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_COLOURS = 4  # an axis of more is not one of colours
_SLOPES = (1.0, 2.0)  # of the amplitude, drawn for each sample
_ALIKE = 0.9  # correlation of the channels of a sample


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """Return the axis of the few channels of a signal; None where the shape is not that of a signal.

    A signal has its samples along axis 0, 1 to 4 channels along axis 1 or the last, and its places along the others.
    """
    if len(shape) < 3:
        return None
    return next((axis for axis in (1, len(shape) - 1) if 1 <= shape[axis] <= _COLOURS), None)


def amplitudes(extents: tuple[int, ...], slopes: Array) -> Array:
    """Return 1 / f^a at the frequencies of a real Fourier transform over axes of these extents.

    Args:
        extents: Of the places.
        slopes: a, one for each sample.

    Returns:
        Shape [samples, 1, *frequencies]; white noise times these has the variance 1.
    """
    axes = [np.fft.fftfreq(n) for n in extents[:-1]] + [np.fft.rfftfreq(extents[-1])]
    squares = [np.square(f).reshape([-1 if i == axis else 1 for i in range(len(axes))]) for axis, f in enumerate(axes)]
    frequency = np.sqrt(np.asarray(sum(squares)))
    rising = frequency[frequency > 0]
    frequency = np.where(frequency > 0, frequency, rising.min() if rising.size else 1.0)
    spectrum = frequency[None, None] ** -slopes.reshape(-1, *[1] * (1 + len(extents)))
    twice = np.full(frequency.shape[-1], 2.0)  # a real transform holds most frequencies once for two
    twice[0] = 1
    if extents[-1] % 2 == 0:
        twice[-1] = 1
    power = (np.square(spectrum) * twice).sum(axis=tuple(range(2, spectrum.ndim)), keepdims=True) / np.prod(extents)
    return np.asarray(spectrum / np.sqrt(power))


def slopes(rng: np.random.Generator, count: int) -> Array:
    """Draw a for each of so many samples."""
    return rng.uniform(*_SLOPES, count)


def coloured(white: Array) -> Array:
    """Mix white noise [samples, channels, ...] over the channels, so that they go together."""
    channels = white.shape[1]
    correlation = np.full((channels, channels), _ALIKE) + (1 - _ALIKE) * np.eye(channels)
    return np.einsum("dc,nc...->nd...", np.linalg.cholesky(correlation), white)


def whitened(values: Array, spectrum: Array) -> Array:
    """Return the white noise of which `coloured` and `signal` make these values: their inverse."""
    places = tuple(range(2, values.ndim))
    white = np.fft.irfftn(np.fft.rfftn(values, axes=places) / spectrum, s=values.shape[2:], axes=places)
    mixture = coloured(np.eye(values.shape[1])[None])[0]
    return np.einsum("dc,nc...->nd...", np.linalg.inv(mixture), white).astype(values.dtype)


def signal(white: Array, spectrum: Array) -> Array:
    """Give white noise [samples, channels, *places] a spectrum from `amplitudes`."""
    places = tuple(range(2, white.ndim))
    transformed = np.fft.rfftn(white, axes=places) * spectrum
    return np.fft.irfftn(transformed, s=white.shape[2:], axes=places)
