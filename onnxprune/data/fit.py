"""Do these data fit this model? Each misfit is one sentence that names the array and what the model wants.

Inputs are compared with the model's declared inputs; targets with the outputs of a real run, since many files declare
no output shapes. All functions raise DataError or return.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.data.metrics import class_axis, in_words
from onnxprune.data.sources import Array, Arrays, Axes, Batch, Source
from onnxprune.errors import DataError
from onnxprune.graph.dims import batch_symbols, dim_name, graph_inputs, sample_axes, sample_axis
from onnxprune.graph.operators import key, operators
from onnxprune.model_io.bodies import nodes_of


@dataclass(frozen=True)
class InputSpec:
    """A graph input that a caller has to feed.

    Attributes:
        value: The graph input.
        name: Its name.
        dtype: Its element type; None where the file does not say, or it is no tensor.
        dims: Each dimension, fixed (int) or by name (str): `past + 1` follows from another. None for an unknown rank.
        sample_axis: The axis that counts samples, as far as the graph or the user says; None: one array holds for all.
        takes_nan: Whether the model looks for NaN itself, as one with an imputer does.
    """

    value: ir.Value
    name: str
    dtype: np.dtype | None
    dims: tuple[int | str, ...] | None
    sample_axis: int | None = 0
    takes_nan: bool = False

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        """The dimensions, None for an axis of any extent."""
        return None if self.dims is None else tuple(d if isinstance(d, int) else None for d in self.dims)

    @property
    def known_dims(self) -> tuple[int | str, ...]:
        """The dimensions, to make up an input.

        Raises:
            DataError: Not even their number is known.
        """
        if self.dims is None:
            raise DataError(f"input '{self.name}' has no known rank: give inputs that the model runs with by --inputs.")
        return self.dims

    @property
    def element_type(self) -> ir.DataType:
        """The type of the elements, to make up an input.

        Raises:
            DataError: It is no tensor (a sequence, optional or map), or has no type.
        """
        if self.dtype is None or self.value.dtype is None:
            raise DataError(f"input '{self.name}' is no tensor of a known type, so that no inputs can be made up.")
        return self.value.dtype


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """The inputs that a caller has to feed (old files list their initializers among the graph inputs as well)."""
    axes = sample_axes(model)
    nan_takers = {operator.name for operator in operators().values() if operator.takes_nan}
    takes_nan = any(key(node.domain, node.op_type) in nan_takers for node in nodes_of(model.graph))
    return tuple(_spec(value, axes[str(value.name)], takes_nan) for value in graph_inputs(model))


def output_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """The outputs in the same form; their axis of samples is the one with the symbol of the inputs' samples."""
    batch = batch_symbols(graph_inputs(model))
    return tuple(_spec(value, sample_axis(value, batch)) for value in model.graph.outputs)


def _spec(value: ir.Value, axis: int | None, takes_nan: bool = False) -> InputSpec:
    dims = None
    if value.shape is not None:
        dims = tuple(d if isinstance(d, int) else dim_name(value, i) for i, d in enumerate(value.shape))
    is_tensor = isinstance(value.type, ir.TensorType) and value.dtype is not None
    dtype = value.dtype.numpy() if is_tensor and value.dtype is not None else None
    return InputSpec(value, value.name or "", dtype, dims, axis, takes_nan)


def find_axes(
    arrays: Sequence[Array], specs: Sequence[InputSpec], told: Collection[str] = (), count: int | None = None
) -> Axes:
    """Which axis of each array counts samples, as graph and arrays together tell.

    The axis that the graph suggests is taken where the array has as many samples there as the others. Otherwise it is
    one along which the array differs from the declared extent, or is free, and has that many: a state declared
    [2, ?, 24] and given as [2, 16, 24] beside 16 rows has its samples along axis 1. An array of exactly the declared,
    fixed shape holds for all samples.

    Args:
        arrays, specs: The arrays in the order of the inputs (or outputs) that they belong to.
        told: Names whose axis the user gave, which stays.
        count: How many samples there are, where that is known.

    Raises:
        DataError: An array has no axis of the number that the user gave.
    """
    if count is None:
        count = _count(arrays, specs)
    return tuple(_axis(a, s, count, s.name in told) for a, s in zip(arrays, specs, strict=True))


def _count(arrays: Sequence[Array], specs: Sequence[InputSpec]) -> int | None:
    """The number of samples: along the first free axis that the graph suggests, else along the first one."""
    counts: dict[bool, int] = {}
    for array, spec in zip(arrays, specs, strict=True):
        axis = spec.sample_axis
        if axis is None or array.ndim <= axis or (spec.dims is not None and axis not in _candidates(array, spec)):
            continue
        is_free = spec.dims is None or not isinstance(spec.dims[axis], int)
        counts.setdefault(is_free, array.shape[axis])
    return counts.get(True, counts.get(False))


def _axis(array: Array, spec: InputSpec, count: int | None, told: bool) -> int | None:
    axis = spec.sample_axis if array.ndim else None
    if axis is not None and axis >= array.ndim:
        if told:
            raise DataError(f"--sample-axis {spec.name}:{axis} names an axis that the data lack: their shape is "
                            f"{list(array.shape)}.")  # fmt: skip
        axis = None
    if told or axis is None or spec.dims is None or count is None:
        return axis
    possible = _candidates(array, spec)
    if axis in possible and array.shape[axis] == count:
        return axis
    fitting = [i for i in possible if array.shape[i] == count and array.shape[i] != spec.dims[i]]
    if fitting:
        return fitting[0]
    holds_for_all = axis in possible and array.shape[axis] == spec.dims[axis] and count != array.shape[axis]
    return None if holds_for_all and len(possible) == array.ndim else axis


def _candidates(array: Array, spec: InputSpec) -> list[int]:
    """The axes along which the array may have any extent and still fits the declared shape."""
    assert spec.dims is not None
    if array.ndim != len(spec.dims):
        return []
    misfits = {i for i, (n, d) in enumerate(zip(array.shape, spec.dims, strict=True)) if isinstance(d, int) and n != d}
    return [i for i in range(array.ndim) if misfits <= {i}]


def fit_inputs(batch: Batch, specs: Sequence[InputSpec]) -> tuple[Array, ...]:
    """The input arrays of a batch in the model's exact types, every one checked.

    A float array is cast to the float type that the model wants, an integer one to its integer type; nothing is cast
    between the two, since that usually hides a forgotten scaling.

    Raises:
        DataError: The number, rank, extents or types do not fit, or a number is NaN that the model does not expect.
    """
    if len(batch.inputs) != len(specs):
        names = ", ".join(f"'{spec.name}'" for spec in specs)
        raise DataError(f"The data give {len(batch.inputs)} inputs, but the model takes {len(specs)}: {names}.")
    return tuple(_fit(a, spec, axis) for a, spec, axis in zip(batch.inputs, specs, batch.sample_axes, strict=True))


def _fit(array: Array, spec: InputSpec, axis: int | None) -> Array:
    if spec.shape is not None:
        fits = array.ndim == len(spec.shape) and all(
            i == axis or want is None or have == want
            for i, (have, want) in enumerate(zip(array.shape, spec.shape, strict=True))
        )
        if not fits:
            raise DataError(f"The data for input '{spec.name}' have shape {in_words(array.shape, axis)}; the model "
                            f"wants {in_words(spec.shape, axis)}.{_axis_hint(array, spec)}")  # fmt: skip
    if _kind(array.dtype) == "f" and not spec.takes_nan:
        _refuse_nan(array, axis, f"The data for input '{spec.name}'")
    if spec.dtype is None or array.dtype == spec.dtype:
        return array
    if spec.dtype == np.dtype(object) and array.dtype.kind in "OSU":
        return array.astype(object)
    if array.dtype == object or _kind(array.dtype) != _kind(spec.dtype):
        raise DataError(f"The data for input '{spec.name}' are of type {array.dtype}; the model wants {spec.dtype}.")
    return array.astype(spec.dtype)


def _refuse_nan(array: Array, axis: int | None, what: str) -> None:
    missing = np.isnan(array)
    if missing.any():
        others = tuple(i for i in range(array.ndim) if i != axis)
        where = "" if axis is None else f", first in sample {int(np.flatnonzero(missing.any(axis=others))[0])}"
        raise DataError(f"{what} hold NaN{where}: leave such samples out, or fill the gaps.")


def _axis_hint(array: Array, spec: InputSpec) -> str:
    """What to do where another axis may count the samples."""
    told = spec.dims is not None and array.ndim == len(spec.dims) > 1
    return f" If another axis counts its samples, say --sample-axis {spec.name}:AXIS." if told else ""


def _kind(dtype: np.dtype) -> str:
    """f for floats (bfloat16 is 'V' to numpy), i for integers of either sign, else numpy's letter."""
    if dtype.name.startswith(("bfloat", "float")):
        return "f"
    return "i" if dtype.kind in "iu" else dtype.kind


def fit_source(source: Source, specs: Sequence[InputSpec]) -> Source:
    """A source that gives only checked and cast batches; data in memory are checked at once, others as they come."""
    if isinstance(source, Arrays):
        return Arrays(fit_inputs(source.whole, specs), source.targets, source.axes, source.target_axes)
    return Fitted(source, tuple(specs)) if not hasattr(source, "rows") else FittedRows(source, tuple(specs))


@dataclass(frozen=True)
class Fitted:
    """A source whose every batch is checked against the model's inputs."""

    whole: Source
    specs: tuple[InputSpec, ...]

    @property
    def count(self) -> int | None:
        return self.whole.count

    def epoch(self, batch_size: int, order: Array | None = None) -> Iterator[Batch]:
        for batch in self.whole.epoch(batch_size, order):
            yield _fitted(batch, self.specs)


class FittedRows(Fitted):
    """The same for a source whose samples can be picked by number."""

    def rows(self, indices: Array) -> Batch:
        return _fitted(self.whole.rows(indices), self.specs)  # type: ignore[attr-defined]


def _fitted(batch: Batch, specs: Sequence[InputSpec]) -> Batch:
    return Batch(fit_inputs(batch, specs), batch.targets, batch.axes, batch.target_axes)


def is_labels(target: Array) -> bool:
    """True for class numbers, False for real values."""
    return target.dtype.kind in "iub"


def fit_target(target: Array, output: Sequence[int], name: str) -> Array:
    """The target of one output, checked: int64 labels below the class count, or float32 values in the output's shape.

    A trailing axis of 1 is added or dropped where only that differs.

    Args:
        target: [N, ...] labels or values.
        output: Shape of the model's output for the same N samples.
        name: The output's name, for the message.

    Raises:
        DataError: Shape, type or a label's value does not fit.
    """
    if is_labels(target):
        if target.ndim == len(output) and target.shape[-1] == 1 and len(output) > 1:
            target = target[..., 0]
        classes = output[class_axis(output, target.shape)]
        low, high = (int(target.min()), int(target.max())) if target.size else (0, 0)
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise DataError(f"Label {wrong} is out of range: output '{name}' has classes 0 to {classes - 1}.")
        return target.astype(np.int64)
    if _kind(target.dtype) != "f":
        raise DataError(f"The target of output '{name}' is of type {target.dtype}; it has to be numbers.")
    _refuse_nan(target, 0 if target.ndim else None, f"The targets of output '{name}'")
    if np.isinf(target).any():
        raise DataError(f"The targets of output '{name}' hold infinite numbers.")
    if tuple(target.shape) != tuple(output):
        if tuple(target.shape) + (1,) != tuple(output) and tuple(target.shape) != (*output, 1):
            raise DataError(f"The target of output '{name}' has shape {in_words(target.shape)}; the model gives "
                            f"{in_words(output)}.")  # fmt: skip
        target = target.reshape(tuple(output))
    return target.astype(np.float32)


@dataclass(frozen=True)
class TargetSpec:
    """An output that a target belongs to, and its shape in a run on a few samples."""

    name: str
    shape: tuple[int, ...]


def fit_targets(source: Source, specs: Sequence[TargetSpec]) -> Source:
    """A source that gives only checked targets; data in memory are checked at once, others as they come."""
    if isinstance(source, Arrays):
        whole = [_at(spec.shape, axis, source.count)
                 for spec, axis in zip(specs, source.whole.target_sample_axes, strict=True)]  # fmt: skip
        targets = tuple(map(fit_target, source.targets, whole, [spec.name for spec in specs]))
        return Arrays(source.inputs, targets, source.axes, source.target_axes)
    return Targeted(source, tuple(specs)) if not hasattr(source, "rows") else TargetedRows(source, tuple(specs))


def _at(shape: Sequence[int], axis: int | None, count: int) -> tuple[int, ...]:
    """The shape for so many samples."""
    return tuple(count if i == axis else n for i, n in enumerate(shape))


def _with_targets(batch: Batch, targets: tuple[Array, ...]) -> Batch:
    return Batch(batch.inputs, targets, batch.axes, batch.target_axes)


@dataclass(frozen=True)
class Targeted:
    """A source whose every batch of targets is checked against the model's outputs."""

    whole: Source
    specs: tuple[TargetSpec, ...]

    @property
    def count(self) -> int | None:
        return self.whole.count

    def epoch(self, batch_size: int, order: Array | None = None) -> Iterator[Batch]:
        return (self.check(batch) for batch in self.whole.epoch(batch_size, order))

    def check(self, batch: Batch) -> Batch:
        """The batch with its targets in the types that losses take.

        Raises:
            DataError: A target does not fit.
        """
        if len(batch.targets) != len(self.specs):
            raise DataError(f"A batch has {len(batch.targets)} targets where the first one had {len(self.specs)}.")
        return _with_targets(batch, tuple(map(_fit_batch, batch.targets, self.specs)))


class TargetedRows(Targeted):
    """The same for a source whose samples can be picked by number."""

    def rows(self, indices: Array) -> Batch:
        return self.check(self.whole.rows(indices))  # type: ignore[attr-defined]


def _fit_batch(target: Array, spec: TargetSpec) -> Array:
    """Check one batch's target; axes other than the classes may have other extents than in the first batch."""
    if target.ndim == len(spec.shape):
        return fit_target(target, target.shape if not is_labels(target) else (len(target), *spec.shape[1:]), spec.name)
    if not is_labels(target):
        return fit_target(target, (len(target), *spec.shape[1:]), spec.name)
    axis = 1 if len(spec.shape) != 3 else 2
    return fit_target(target, (*target.shape[:axis], spec.shape[axis], *target.shape[axis:]), spec.name)


def fixed_batch(model: ir.Model, axes: Axes | None = None) -> int | None:
    """The batch size that the model declares, where its inputs have one and agree on it.

    Args:
        model: The model.
        axes: The axis of samples of each input, where data tell; by default what the graph suggests.
    """
    specs = input_specs(model)
    axes = tuple(spec.sample_axis for spec in specs) if axes is None else axes
    sizes = {s.shape[a] if s.shape and a is not None else None for s, a in zip(specs, axes, strict=True)
             if a is not None or s.shape is None}  # fmt: skip
    return sizes.pop() if len(sizes) == 1 else None
