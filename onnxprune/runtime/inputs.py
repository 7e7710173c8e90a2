"""Valid inputs for a model that nobody described.

Random numbers are enough to compare two models, but not any numbers: token ids must be small enough for the embedding
they look up, a mask must let something through, a sampling rate that the graph compares with a constant must be that
constant. All of it is read off the graph: which operators an input reaches says what it may hold.

Dynamic dimensions are named by their symbol, or `input[axis]` where they have none; `sizes` gives each an extent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.data.fit import InputSpec, input_specs
from onnxprune.errors import DataError
from onnxprune.graph.dims import evaluate, factors, is_expression, sizes_of
from onnxprune.graph.hints import Feeds, hints_of
from onnxprune.graph.inference import Extents, find_extents, known_extents
from onnxprune.graph.operators import operator_of
from onnxprune.runtime.drawn import MASKS, draw, is_mask, mask_of
from onnxprune.runtime.other_numbers import other_numbers
from onnxprune.runtime.session import make_session, run

# (sequence length or other extent, side of an image, past length), the likeliest first.
_EXTENTS = ((8, 64, 4), (16, 224, 8), (32, 32, 0), (1, 128, 0), (64, 256, 16), (128, 640, 32), (512, 512, 0))
_LONG = ((2048, 768, 64), (4096, 1024, 0), (16000, 1024, 0), (48000, 1024, 0))  # samples of sound, points
_BATCHES = (2, 1, 3, 4)
_MOST_NUMBERS = 1 << 25  # in made-up inputs together
_RETRIED = 3  # sets of inputs of other extents that are tried again with other numbers
_MOST_UNTOLD = 8  # runs that tell nothing (all NaN, empty) before the first of them is taken

Ran = tuple[Feeds, dict[str, Any]]
"""Inputs, and what a model gave for them."""


def dynamic_dims(model: ir.Model) -> dict[str, bool]:
    """The names of the free dimensions, and whether each is a batch: the sample axis of every input that has it."""
    first: dict[str, bool] = {}
    for spec in input_specs(model):
        for axis, dim in enumerate(spec.known_dims):
            if isinstance(dim, str):
                first[dim] = first.get(dim, True) and axis == spec.sample_axis
    return {name: batch for name, batch in first.items() if not is_expression(name, first)}


def candidate_sizes(model: ir.Model) -> Iterator[dict[str, int]]:
    """Settings of the dynamic dimensions to try, the likeliest first. One empty setting where nothing is dynamic.

    Plain extents come first, then multiples of numbers in Reshape targets, then extents that inference finds to belong
    together, then long ones.
    """
    if not dynamic_dims(model):
        yield {}
        return
    known = known_extents(model)
    yield from _sizes(model, known, _EXTENTS)
    for number in factors(model):
        yield from _sizes(model, known, [(number, 64, number), (8, number, 4)])
        yield from _sizes(model, known, _EXTENTS[:3], (number, 2 * number))
    extents = find_extents(model)
    if extents != known:
        yield from _sizes(model, extents, _EXTENTS)
    yield from _sizes(model, extents, _LONG)


def _sizes(
    model: ir.Model, known: Extents, extents: Iterable[tuple[int, int, int]], batches: Sequence[int] = ()
) -> Iterator[dict[str, int]]:
    specs, dims = input_specs(model), dynamic_dims(model)
    one_prompt = any(operator_of(node).one_prompt for node in model.graph)
    batches = batches or (_BATCHES[1::-1] if one_prompt else _BATCHES[:2])
    batches = batches if any(dims.values()) else batches[:1]
    most = max(_MOST_NUMBERS, 4 * _numbers(specs, dict.fromkeys(dims, 1)))
    for batch, chosen in itertools.product(batches, extents):
        sizes = known.applied({n: _extent(n, is_batch, specs, batch, chosen) for n, is_batch in dims.items()})
        if _numbers(specs, sizes) <= most:
            yield sizes


def _numbers(specs: Iterable[InputSpec], sizes: Mapping[str, int]) -> int:
    """How many numbers the inputs hold together."""
    return sum(math.prod(_resolve(spec, sizes)) for spec in specs)


def random_inputs(
    model: ir.Model, *, seed: int = 0, sizes: Mapping[str, int] | None = None, masks: str = "ones"
) -> Feeds:
    """Random inputs that are valid as far as the graph tells. The same seed and sizes give the same numbers.

    Args:
        model: The model.
        seed: Of the random numbers.
        sizes: Extents of dynamic dimensions by name; those left out take the first of `candidate_sizes`.
        masks: What masks hold: ones, zeros or mixed (the first half of each row ones).

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
    return {spec.name: draw(rng, spec, _resolve(spec, extents), masks) for spec in input_specs(model)}


def input_sets(model: ir.Model, *, seed: int = 0, sizes: Mapping[str, int] | None = None) -> Iterator[Feeds]:
    """Sets of inputs to try, the best first: those of ``--inputs`` alone; else made-up ones, then the user's samples.

    Made-up inputs come with masks of ones first, then of zeros and mixed: a mask may say what is seen, or what is not.

    Args:
        model: The model; see `give_hints`.
        seed: Of the random numbers.
        sizes: Extents that are known, by name of the dimension.

    Raises:
        DataError: An input is no tensor, or has no known rank, and nothing was given.
    """
    hints = hints_of(model)
    if hints.inputs:
        yield from map(dict, hints.inputs)
        return
    try:
        yield from _made_up(model, seed, sizes or {})
    except DataError:
        if not hints.samples:
            raise
    yield from map(dict, hints.samples)


def _made_up(model: ir.Model, seed: int, sizes: Mapping[str, int]) -> Iterator[Feeds]:
    masks = MASKS if any(is_mask(spec) for spec in input_specs(model)) else MASKS[:1]
    for candidate in candidate_sizes(model):
        for kind in masks:
            yield random_inputs(model, seed=seed, sizes={**candidate, **sizes}, masks=kind)


def working_inputs(
    model: ir.Model,
    *,
    seed: int = 0,
    count: int = 1,
    session: ort.InferenceSession | None = None,
    sizes: Mapping[str, int] | None = None,
) -> list[Feeds]:
    """Up to `count` sets of inputs that ONNX Runtime really runs, of different batch sizes where the batch is dynamic.

    Inputs whose outputs tell something (not all NaN, not empty) are preferred.

    Args:
        model: The model.
        seed: Of the random numbers.
        count: How many sets; fewer come back when the batch is fixed or the model runs with one size only.
        session: A session of the model, to save making one.
        sizes: Extents that are known, by name of the dimension.

    Raises:
        DataError: No candidate runs; the message holds ONNX Runtime's words for the first.
    """
    ran = working_runs(model, seed=seed, count=count, session=session or make_session(model), sizes=sizes)
    return [feeds for feeds, _ in ran]


def working_runs(
    model: ir.Model,
    *,
    seed: int = 0,
    count: int = 1,
    session: ort.InferenceSession,
    sizes: Mapping[str, int] | None = None,
) -> list[Ran]:
    """The same as `working_inputs`, each beside what the model gave for it, which saves running it again.

    Where operators draw random numbers, these outputs are not those of a new session.

    Raises:
        DataError: As `working_inputs`.
    """
    first_failure: DataError | None = None
    untold: list[Ran] = []
    told_nothing = 0
    refused: list[Feeds] = []
    failed: set[tuple[tuple[int, ...], ...]] = set()
    made_up = not hints_of(model).inputs and not hints_of(model).samples
    for feeds in input_sets(model, seed=seed, sizes=sizes):
        shapes = tuple(np.shape(array) for array in feeds.values())
        if shapes in failed and not hints_of(model).inputs:
            continue  # other numbers in masks, which is not what was wrong
        try:
            outputs = run(session, feeds)
        except DataError as failure:
            first_failure = first_failure or failure
            failed.add(shapes)
            refused.append(feeds)
            continue
        if not tells_something(outputs):
            positive = _told(session, _positive(feeds)) if made_up else None  # for a root or a logarithm
            if positive is None:
                untold += [] if untold else [(feeds, outputs)]
                told_nothing += 1
                if told_nothing == _MOST_UNTOLD:
                    break
                continue
            feeds, outputs = positive
        return [(feeds, outputs), *itertools.islice(_others(model, session, seed, feeds, sizes or {}), count - 1)]
    for feeds, ran, change in _changed(model, session, (*(f for f, _ in untold), *refused[:_RETRIED])):
        return [ran, *itertools.islice(_others(model, session, seed, feeds, sizes or {}, change), count - 1)]
    if untold:
        return [untold[0], *itertools.islice(_others(model, session, seed, untold[0][0], sizes or {}), count - 1)]
    if hints_of(model).inputs:
        raise DataError(f"the model does not run the inputs of --inputs ({str(first_failure).rstrip('. ')})")
    raise DataError(
        f"no inputs were found that the model runs with: give some by --inputs FILE.npz, one array for each input "
        f"({str(first_failure).rstrip('. ')})"
    )


def _changed(
    model: ir.Model, session: ort.InferenceSession, tried: Iterable[Feeds]
) -> Iterator[tuple[Feeds, Ran, Callable[[Feeds], Feeds]]]:
    """Inputs that did not run or told nothing, each with a change of numbers by which it runs; none of the user's."""
    for feeds in () if hints_of(model).inputs else tried:
        for change in other_numbers(model, feeds):
            if (ran := _told(session, change(feeds))) is not None:
                yield feeds, ran, change


def _positive(feeds: Feeds) -> Feeds:
    """The same without a sign."""
    return {name: np.abs(array) if array.dtype.kind == "f" else array for name, array in feeds.items()}


def _told(session: ort.InferenceSession, feeds: Feeds) -> Ran | None:
    """These inputs with their outputs, where the model runs them and the outputs tell something."""
    try:
        outputs = run(session, feeds)
    except DataError:
        return None
    return (feeds, outputs) if tells_something(outputs) else None


def one_sample(
    model: ir.Model, *, seed: int = 0, instead: Feeds | None = None, session: ort.InferenceSession | None = None
) -> Feeds:
    """Return inputs of one sample, at which multiply-adds and latency are counted and measured.

    Args:
        model, seed, session: See `working_inputs`.
        instead: Inputs to take where the model does not run one sample; by default any that it runs.

    Raises:
        DataError: No inputs are found that the model runs with, or it does not run at the shapes that the user told.
    """
    session = session or make_session(model)
    sizes = {name: 1 for name, is_batch in dynamic_dims(model).items() if is_batch}
    if hints_of(model).shapes:
        return _at_told_shapes(model, session, seed, sizes)
    try:
        feeds = working_inputs(model, seed=seed, session=session, sizes=sizes)[0]
    except DataError:
        feeds = {}
    return feeds or (instead if instead is not None else working_inputs(model, seed=seed, session=session)[0])


def _at_told_shapes(model: ir.Model, session: ort.InferenceSession, seed: int, sizes: Mapping[str, int]) -> Feeds:
    """Inputs of the shapes that the user told; other inputs follow as far as dimensions share names.

    Raises:
        DataError: The model does not run with any.
    """
    shapes, failure = hints_of(model).shapes, "sizes of its inputs contradict each other"
    free = dynamic_dims(model)
    told: dict[str, int] = {}
    for spec in input_specs(model):
        for dim, extent in zip(spec.known_dims, shapes.get(spec.name, ()), strict=False):
            if isinstance(dim, str) and dim in free:
                told[dim] = extent
    for feeds in _made_up(model, seed, {**sizes, **told}):
        if any(feeds[name].shape != shape for name, shape in shapes.items()):
            continue
        try:
            run(session, feeds)
        except DataError as error:
            failure = str(error)
            continue
        return feeds
    listed = ", ".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    raise DataError(f"the model does not run at --input-shape {listed}: {failure.rstrip('. ')}")


def tells_something(outputs: Mapping[str, Any]) -> bool:
    """Whether outputs can show a difference: some are not empty, and no float output is NaN or infinite throughout."""
    arrays = [np.asarray(output) for output in outputs.values() if not isinstance(output, list)]
    floats = [array for array in arrays if array.size and array.dtype.kind in "fc"]
    lost = any(not np.isfinite(array).any() for array in floats)
    return not lost and (any(array.size for array in arrays) or not arrays)


def _others(
    model: ir.Model,
    session: ort.InferenceSession,
    seed: int,
    chosen: Feeds,
    told: Mapping[str, int],
    change: Callable[[Feeds], Feeds] = dict,
) -> Iterator[Ran]:
    """Inputs of other batch sizes than the chosen ones: the user's, or the same made up anew, with the same change."""
    hints = hints_of(model)
    shapes = {name: np.shape(array) for name, array in chosen.items()}
    users = [dict(feeds) for feeds in (*hints.inputs, *hints.samples)]
    candidates: Iterator[Feeds]
    if any(feeds.keys() == chosen.keys() and all(feeds[n] is chosen[n] for n in feeds) for feeds in users):
        candidates = (f for f in users if {name: np.shape(array) for name, array in f.items()} != shapes)
    else:
        candidates = _other_batches(model, seed, chosen, told)
        if all((array >= 0).all() for array in chosen.values() if array.dtype.kind == "f"):
            candidates = map(_positive, candidates)
    for feeds in map(change, candidates):
        try:
            outputs = run(session, feeds)
        except DataError:
            continue
        yield feeds, outputs


def _other_batches(model: ir.Model, seed: int, chosen: Feeds, told: Mapping[str, int]) -> Iterator[Feeds]:
    sizes = sizes_of(model, chosen)
    sizes = {name: n for name, n in sizes.items() if not is_expression(name, sizes)}
    batches = [name for name, is_batch in dynamic_dims(model).items() if is_batch and name not in told]
    kind = kind_of_masks(model, chosen)
    first = max((sizes[name] for name in batches), default=1)
    for batch in (*_BATCHES, 2 * first):
        other = {**sizes, **dict.fromkeys(batches, batch)}
        if other != sizes:
            yield random_inputs(model, seed=seed, sizes=other, masks=kind)


def kind_of_masks(model: ir.Model, feeds: Feeds) -> str:
    """Return which of the kinds of mask these inputs have: ones, zeros or mixed."""
    masks = [feeds[spec.name] for spec in input_specs(model) if is_mask(spec)]
    made = {kind: [mask_of(mask.shape, kind).astype(mask.dtype) for mask in masks] for kind in MASKS}
    return next((kind for kind in MASKS if all(map(np.array_equal, masks, made[kind]))), "ones")


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
