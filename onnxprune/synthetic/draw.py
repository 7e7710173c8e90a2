"""Random inputs to take the place of calibration data, in a form that gradients can improve.

Pictures are leaves that hide each other, other signals (sound, video) noise with the spectrum of natural ones, other
floats independent and normal. Ids lie within the table that they index, masks let everything through. See
`runtime.inputs` for what the graph tells of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.batches import Samples
from onnxprune.data.fit import InputSpec, input_specs
from onnxprune.data.sources import Arrays, join
from onnxprune.errors import DataError
from onnxprune.graph.dims import sizes_of
from onnxprune.graph.following import affine_behind
from onnxprune.graph.hints import Feeds, hints_of
from onnxprune.graph.input_roles import integer_role
from onnxprune.runtime.drawn import is_mask
from onnxprune.runtime.inputs import dynamic_dims, kind_of_masks, one_sample, random_inputs
from onnxprune.runtime.session import make_session, run
from onnxprune.synthetic.leaves import is_picture, pictures
from onnxprune.synthetic.noise import amplitudes, channel_axis, coloured, signal, slopes, whitened

Array = npt.NDArray[Any]
TOKENS = 32  # extent of free dimensions of ids, where the model runs with it


@dataclass(frozen=True, eq=False)
class Field:
    """One float input of all samples, as white noise and what is made of it.

    Attributes:
        white: [samples, channels, *places] of a signal, else in the input's shape. Standard normal, but of a picture:
            there it is what the noise would have to be to give the picture.
        spectrum: Of a signal, from `noise.amplitudes`; None for others.
        channels: The axis of channels in the input; None where it is no signal.
        factor, offset: What goes into the graph is factor * n + offset; they broadcast to the input's shape.
        dtype: Of the input.
    """

    white: Array
    spectrum: Array | None
    channels: int | None
    factor: Array
    offset: Array
    dtype: np.dtype[Any]

    @property
    def picture(self) -> bool:
        """Whether it is one of `leaves`."""
        return self.channels is not None and is_picture(self.white.shape[2:])

    def values(self) -> Array:
        """The input that the noise makes."""
        numbers = self.white
        if self.spectrum is not None and self.channels is not None:
            numbers = np.moveaxis(coloured(signal(self.white, self.spectrum)), 1, self.channels)
        return (self.factor * numbers + self.offset).astype(self.dtype)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Inputs of a model.

    Attributes:
        samples: All inputs.
        fields: Those that can be improved, by name; their samples lie along axis 0.
    """

    samples: Samples
    fields: Mapping[str, Field]


@dataclass(frozen=True)
class Setting:
    """What inputs are drawn with.

    Attributes:
        sizes: Extents of the free dimensions, for one sample.
        masks: What masks hold, see `runtime.inputs.random_inputs`.
    """

    sizes: Mapping[str, int]
    masks: str

    def feeds(self, model: ir.Model, seed: int, batch: int = 1) -> Feeds:
        """Random inputs of so many samples, where their number is free."""
        batches = {name: batch for name, is_batch in dynamic_dims(model).items() if is_batch}
        return random_inputs(model, seed=seed, sizes={**self.sizes, **batches}, masks=self.masks)


def setting_of(model: ir.Model, seed: int) -> Setting:
    """Return the extents and masks with which one sample runs; sequences of ids are not too short.

    Raises:
        DataError: No inputs are found that the model runs with.
    """
    feeds, free = one_sample(model, seed=seed), dynamic_dims(model)
    extents = {name: extent for name, extent in sizes_of(model, feeds).items() if name in free}
    setting, hints = Setting(extents, kind_of_masks(model, feeds)), hints_of(model)
    if hints.inputs or hints.samples or hints.shapes:
        return setting
    longer = {
        dim: TOKENS
        for spec in input_specs(model)
        if spec.dtype is not None and spec.dtype.kind in "iu"
        for dim in spec.known_dims
        if isinstance(dim, str) and not free.get(dim, True) and 1 < extents.get(dim, TOKENS) < TOKENS
    }
    longest = Setting({**extents, **longer}, setting.masks)
    return longest if longer and _runs(model, longest.feeds(model, seed)) else setting


def draw(model: ir.Model, setting: Setting, count: int, seed: int) -> Drawn:
    """Draw inputs.

    Args:
        model: The model.
        setting: From `setting_of`.
        count: How many samples; a model of fixed batch size gets whole batches, one at least.
        seed: Of all that is drawn.

    Raises:
        DataError: An input is no tensor of a known type.
    """
    specs = input_specs(model)
    axes = tuple(spec.sample_axis for spec in specs)
    parts: list[tuple[Array, ...]] = []
    held = 0
    while held < count:
        feeds = setting.feeds(model, seed + held, count)
        parts.append(tuple(feeds[spec.name] for spec in specs))
        size = Arrays(parts[-1], axes=axes).count
        held += size
        if size == 0 or all(axis is None for axis in axes):
            break
    rng, fields = np.random.default_rng(seed), dict[str, Field]()
    named = dict(zip((spec.name for spec in specs), join(parts, axes), strict=True))
    for spec in specs:
        bound = integer_role(spec.value).bound if spec.dtype is not None and spec.dtype.kind == "f" else None
        if bound is not None:  # ids that come as floats
            ids = rng.integers(0, bound, named[spec.name].shape)
            named[spec.name] = ids.astype(named[spec.name].dtype)
        elif _is_free(spec):
            fields[spec.name] = _field(spec, named[spec.name].shape, rng)
            named[spec.name] = fields[spec.name].values()
    return Drawn(Samples(named, {spec.name: spec.sample_axis for spec in specs}), fields)


def can_be_improved(model: ir.Model) -> bool:
    """Say whether an input may hold any float numbers."""
    return any(_is_free(spec) and integer_role(spec.value).bound is None for spec in input_specs(model))


def _runs(model: ir.Model, feeds: Feeds) -> bool:
    try:
        run(make_session(model), feeds)
    except DataError:
        return False
    return True


def _is_free(spec: InputSpec) -> bool:
    """Whether an input may hold any float numbers, one row for each sample."""
    return spec.sample_axis == 0 and spec.dtype is not None and spec.dtype.kind == "f" and not is_mask(spec)


def _field(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Field:
    channels = channel_axis(shape)
    factor, offset = _before_entry(spec.value, shape, len(shape) - 1 if channels is None else channels)
    assert spec.dtype is not None
    if channels is None:
        return Field(rng.standard_normal(shape), None, None, factor, offset, spec.dtype)
    places = tuple(n for axis, n in enumerate(shape) if axis not in (0, channels))
    picture = is_picture(places)
    spectrum = amplitudes(places, np.ones(shape[0]) if picture else slopes(rng, shape[0]))
    if picture:
        white = whitened(pictures(rng, shape[0], shape[channels], places), spectrum)
    else:
        white = rng.standard_normal((shape[0], shape[channels], *places))
    return Field(white, spectrum, channels, factor, offset, spec.dtype)


def _before_entry(value: ir.Value, shape: tuple[int, ...], axis: int) -> tuple[Array, Array]:
    """Factor and offset, for each index of an axis: for the input factor * n + offset, n arrives at the first weight.

    Many graphs begin with (x - mean) / deviation.
    """
    scale, shift = affine_behind(value, shape[axis], axis=axis)
    usable = np.isfinite(scale) & (scale != 0)
    factor = np.where(usable, 1 / np.where(usable, scale, 1.0), 1.0)
    offset = np.where(usable, -shift * factor, 0.0)
    along = [-1 if i == axis else 1 for i in range(len(shape))]
    return factor.reshape(along), offset.reshape(along)
