"""Inputs that a model runs with, taken from what the user gives: ``--inputs``, or samples of the other data.

They become hints on the model (`graph.hints`), which every place that needs inputs looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import npz
from onnxprune.data.batches import Inputs, Samples, batches, samples_by_name
from onnxprune.data.fit import fixed_batch, input_specs
from onnxprune.data.readers import AnyData, Data, open_data, to_array
from onnxprune.data.sources import Arrays, Batch, first_samples
from onnxprune.errors import DataError
from onnxprune.graph.hints import Feeds, give_hints, parse_input_shapes, parse_sample_axes
from onnxprune.recipe.training import DataSettings

_MOST = 64  # samples that are run at once
_CUTS = (2, 1, 3, 4, 8, 16, 32)


def give_inputs(model: ir.Model, inputs: AnyData | None = None, reading: DataSettings | None = None) -> None:
    """Let the model carry what the user says of its inputs: the axes of samples, and inputs that it runs with.

    Args:
        model: The model.
        inputs: One array for each input: a whole set of inputs, or samples; any form of data.
        reading: How data are read; its `sample_axis` and `input_shape` are taken.

    Raises:
        DataError: The inputs cannot be read, or are not those of the model.
        RecipeError: There is no input of a name in `sample_axis`, or no such axis.
    """
    if reading is not None and reading.sample_axis:
        give_hints(model, sample_axes=parse_sample_axes(reading.sample_axis))
    if reading is not None and reading.input_shape:
        give_hints(model, shapes=parse_input_shapes(reading.input_shape))
    if inputs is None:
        return
    arrays = _named_arrays(inputs, model)
    whole = None if arrays is None else _whole_set(model, arrays)
    if whole is not None:
        if whole and not any(array.size for array in whole.values()):  # an empty cache beside others is none
            raise DataError("--inputs holds no samples: its arrays are empty.")
        cuts = _cuts_of_set(model, whole)
        give_hints(model, inputs=[whole, *cuts])
        return
    opened = open_data(model, inputs if arrays is None else arrays, reading)
    give_hints(model, inputs=_cuts(model, opened))


def give_samples(model: ir.Model, data: Data | Inputs) -> None:
    """Let the model carry samples of calibration or evaluation data, for where made-up inputs do not run.

    Raises:
        DataError: The data cannot be read.
    """
    if isinstance(data, Data):
        give_hints(model, samples=_cuts(model, data))
        return
    samples = samples_by_name(model, data)
    arrays, axes = tuple(samples.values()), tuple(samples.axes[name] for name in samples)
    give_hints(model, samples=_cuts(model, Data(Arrays(arrays, axes=axes), ())))


def _named_arrays(inputs: AnyData, model: ir.Model) -> dict[str, Any] | None:
    """The arrays of a file or mapping, by input name; None for data of another form."""
    if isinstance(inputs, Data):
        return None
    if isinstance(inputs, Mapping):
        return dict(inputs)
    suffix, specs = Path(inputs).suffix.lower(), input_specs(model)
    if suffix == ".npz":
        arrays: dict[str, Any] = dict(npz.read_npz(Path(inputs)))
    elif suffix == ".npy" and len(specs) == 1:
        return {specs[0].name: npz.read_npy(Path(inputs))}
    else:
        return None
    if len(specs) == len(arrays) == 1:
        return {specs[0].name: next(iter(arrays.values()))}
    return arrays


def _whole_set(model: ir.Model, arrays: Mapping[str, Any]) -> Feeds | None:
    """The arrays as one set of inputs, where they have the declared shapes and no more samples than run at once."""
    joined: Feeds = {}
    for spec in input_specs(model):
        if spec.name not in arrays:
            raise DataError(f"--inputs has no array '{spec.name}', which the model takes as input; it has "
                            f"{', '.join(map(repr, arrays)) or 'none'}.")  # fmt: skip
        array = to_array(arrays[spec.name], f"--inputs, '{spec.name}'")
        fits = spec.dims is None or (
            array.ndim == len(spec.dims)
            and all(n == d or isinstance(d, str) for n, d in zip(array.shape, spec.dims, strict=True))
        )
        if not fits:
            return None
        kinds = (array.dtype.kind, "" if spec.dtype is None else spec.dtype.kind)
        if spec.dtype is not None and kinds[0] != kinds[1] and not set(kinds) <= set("iu") and kinds[1] != "O":
            raise DataError(f"--inputs, '{spec.name}': it holds {array.dtype}, and the model takes {spec.dtype}.")
        joined[spec.name] = array if spec.dtype is None else array.astype(spec.dtype, copy=False)
    return joined


def _cuts_of_set(model: ir.Model, whole: Feeds) -> list[Feeds]:
    """Smaller sets of the same samples, where a free axis counts them."""
    try:
        return _cuts(model, open_data(model, whole))
    except DataError:
        return []


def _cuts(model: ir.Model, data: Data) -> list[Feeds]:
    """Sets of inputs made of the first samples, in numbers that a model may ask for; the small ones first."""
    batch, names = first_samples(data.source, _MOST), [spec.name for spec in input_specs(model)]
    if fixed_batch(model, batch.sample_axes) is not None:
        return batches(model, _by_name(batch, names))[:2]
    numbers = [*(n for n in _CUTS if n < len(batch)), len(batch)]
    return [dict(zip(names, batch.rows(np.arange(n)).inputs, strict=True)) for n in numbers]


def _by_name(batch: Batch, names: list[str]) -> Samples:
    axes = dict(zip(names, batch.sample_axes, strict=True))
    return Samples(dict(zip(names, batch.inputs, strict=True)), axes)
