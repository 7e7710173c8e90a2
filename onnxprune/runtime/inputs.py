"""Valid inputs for a model that nobody described.

Random numbers are enough to compare two models, but not any numbers: token ids must be small enough for the embedding
they look up, a mask must let something through, a sampling rate that the graph compares with a constant must be that
constant. All of it is read off the graph: which operators an input reaches says what it may hold.

Dynamic dimensions are named by their symbol, or `input[axis]` where they have none; `sizes` gives each an extent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.data.fit import InputSpec, input_specs
from onnxprune.errors import DataError
from onnxprune.graph.dims import evaluate, is_expression
from onnxprune.graph.hints import Feeds
from onnxprune.graph.input_roles import integer_role
from onnxprune.graph.layers import data_width
from onnxprune.runtime.session import make_session, run

# (sequence length or other extent, side of an image, past length), the likeliest first.
_EXTENTS = ((8, 64, 4), (16, 224, 8), (32, 32, 0), (1, 128, 0), (64, 256, 16), (128, 640, 32), (512, 512, 0))
_BATCHES = (2, 1, 3, 4)


def dynamic_dims(model: ir.Model) -> dict[str, bool]:
    """The names of the free dimensions, and whether each is a batch: the first axis of every input that has it."""
    first: dict[str, bool] = {}
    for spec in input_specs(model):
        for axis, dim in enumerate(spec.known_dims):
            if isinstance(dim, str):
                first[dim] = first.get(dim, True) and axis == 0
    return {name: batch for name, batch in first.items() if not is_expression(name, first)}


def candidate_sizes(model: ir.Model) -> Iterator[dict[str, int]]:
    """Settings of the dynamic dimensions to try, the likeliest first. One empty setting where nothing is dynamic."""
    specs, dims = input_specs(model), dynamic_dims(model)
    if not dims:
        yield {}
        return
    widths = _widths_of_weights(specs)
    batches = _BATCHES[:2] if any(dims.values()) else _BATCHES[:1]
    for batch, extents in itertools.product(batches, _EXTENTS):
        yield {
            name: widths.get(name) or _extent(name, is_batch, specs, batch, extents) for name, is_batch in dims.items()
        }


def random_inputs(model: ir.Model, *, seed: int = 0, sizes: Mapping[str, int] | None = None) -> Feeds:
    """Random inputs that are valid as far as the graph tells. The same seed and sizes give the same numbers.

    Args:
        model: The model.
        seed: Of the random numbers.
        sizes: Extents of dynamic dimensions by name; those left out take the first of `candidate_sizes`.

    Raises:
        DataError: An input is no tensor, or `sizes` names a dimension that the model does not have.
    """
    defaults = next(candidate_sizes(model))
    unknown = set(sizes or ()) - set(defaults)
    if unknown:
        listed = ", ".join(f"'{name}'" for name in sorted(unknown))
        known = ", ".join(f"'{name}'" for name in defaults) or "none"
        raise DataError(f"the model has no dynamic dimension {listed} (it has: {known}).")
    extents = {**defaults, **(sizes or {})}
    rng = np.random.default_rng(seed)
    return {spec.name: _draw(rng, spec, _resolve(spec, extents)) for spec in input_specs(model)}


def working_inputs(
    model: ir.Model,
    *,
    seed: int = 0,
    count: int = 1,
    session: ort.InferenceSession | None = None,
    sizes: Mapping[str, int] | None = None,
) -> list[Feeds]:
    """Up to `count` sets of inputs that ONNX Runtime really runs, of different batch sizes where the batch is dynamic.

    Args:
        model: The model.
        seed: Of the random numbers.
        count: How many sets; fewer come back when the batch is fixed or the model runs with one size only.
        session: A session of the model, to save making one.
        sizes: Extents that are known, by name of the dimension.

    Raises:
        DataError: No candidate runs; the message holds ONNX Runtime's words for the first.
    """
    session = session or make_session(model)
    first_failure: DataError | None = None
    for candidate in candidate_sizes(model):
        chosen = {**candidate, **(sizes or {})}
        feeds = random_inputs(model, seed=seed, sizes=chosen)
        try:
            run(session, feeds)
        except DataError as failure:
            first_failure = first_failure or failure
            continue
        return [feeds, *itertools.islice(_other_batches(model, session, seed, chosen, sizes or {}), count - 1)]
    raise DataError(f"no inputs were found that the model runs with; give some in an .npz file ({first_failure})")


def _other_batches(
    model: ir.Model, session: ort.InferenceSession, seed: int, chosen: Mapping[str, int], given: Mapping[str, int]
) -> Iterator[Feeds]:
    batches = [name for name, is_batch in dynamic_dims(model).items() if is_batch and name not in given]
    for batch in _BATCHES:
        other = {**chosen, **dict.fromkeys(batches, batch)}
        if other == chosen:
            continue
        feeds = random_inputs(model, seed=seed, sizes=other)
        try:
            run(session, feeds)
        except DataError:
            continue
        yield feeds


def _resolve(spec: InputSpec, extents: Mapping[str, int]) -> tuple[int, ...]:
    shape = (dim if isinstance(dim, int) else extents.get(dim, evaluate(dim, extents)) for dim in spec.known_dims)
    return tuple(int(extent or 0) for extent in shape)


def _extent(name: str, is_batch: bool, specs: Sequence[InputSpec], batch: int, extents: tuple[int, int, int]) -> int:
    sequence, side, past = extents
    if is_batch or "batch" in name.lower():
        return batch
    if "past" in name.lower():
        return past
    for spec in specs:
        if name in spec.known_dims and len(spec.known_dims) >= 4 and spec.element_type.is_floating_point():
            channels_last = spec.known_dims[-1] in (1, 3, 4)
            axis = spec.known_dims.index(name)
            return 3 if axis == (len(spec.known_dims) - 1 if channels_last else 1) else side
    return sequence


def _widths_of_weights(specs: Sequence[InputSpec]) -> dict[str, int]:
    """Extents of dimensions that a weight right behind the input settles: channels of a Conv, width of a product."""
    widths: dict[str, int] = {}
    for spec in specs:
        for node, index in spec.value.uses():
            found = data_width(node, index, len(spec.known_dims)) if spec.known_dims else None
            name = spec.known_dims[found[0]] if found is not None else None
            if found is not None and isinstance(name, str):
                widths[name] = found[1]
    return widths


def _draw(rng: np.random.Generator, spec: InputSpec, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Numbers for one input: masks of ones, ids within bounds, images of bytes, floats from a standard normal."""
    is_mask = "mask" in spec.name.lower()
    if spec.element_type == ir.DataType.STRING:
        return np.full(shape, "a", dtype=object)
    dtype = spec.element_type.numpy()
    if spec.element_type == ir.DataType.BOOL:
        return np.ones(shape, bool) if is_mask else rng.integers(0, 2, shape).astype(bool)
    if spec.element_type.is_integer():
        role = integer_role(spec.value)
        if role.bound is None and role.constant is None and is_mask:
            return np.ones(shape, dtype)
        return _integers(rng, spec.element_type, shape, role.bound, role.constant)
    if np.dtype(dtype).kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return np.ones(shape, dtype) if is_mask else rng.standard_normal(shape, np.float32).astype(dtype)


def _integers(
    rng: np.random.Generator, dtype: ir.DataType, shape: tuple[int, ...], bound: int | None, constant: int | None
) -> npt.NDArray[Any]:
    """Integers below `bound`. A constant that the graph looks for fills a scalar, and ends every row of a tensor."""
    count = int(np.prod(shape))
    if bound is None:
        if dtype in (ir.DataType.UINT8, ir.DataType.INT8):
            bound = 256 if dtype == ir.DataType.UINT8 else 128
        else:
            bound = 2
            if count == 1 and constant is None:
                return np.ones(shape, dtype.numpy())
    array = rng.integers(0, max(bound, 1), shape).astype(dtype.numpy())
    if constant is not None and count and constant >= 0:
        if count == 1 or not shape:
            array[...] = constant
        else:
            array[..., -1] = constant
    return array
