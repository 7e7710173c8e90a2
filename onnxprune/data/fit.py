"""Do these data fit this model? Each misfit is one sentence that names the array and what the model wants.

Inputs are compared with the model's declared inputs; targets with the outputs of a real run, since many files declare
no output shapes. All functions raise DataError or return.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.data.metrics import class_axis, in_words
from onnxprune.data.sources import Array, Arrays, Batch, Source
from onnxprune.errors import DataError


@dataclass(frozen=True)
class InputSpec:
    """A graph input: None stands for an axis of any extent, and for an unknown rank or type."""

    name: str
    dtype: np.dtype | None
    shape: tuple[int | None, ...] | None


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """The inputs that a caller has to feed (old files list their initializers among the graph inputs as well)."""
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        dtype = None if value.dtype is None else value.dtype.numpy()
        shape = None if value.shape is None else tuple(d if isinstance(d, int) else None for d in value.shape)
        specs.append(InputSpec(value.name or "", dtype, shape))
    return tuple(specs)


def fit_inputs(inputs: Sequence[Array], specs: Sequence[InputSpec]) -> tuple[Array, ...]:
    """The input arrays in the model's exact types, every one checked.

    A float array is cast to the float type that the model wants, an integer one to its integer type; nothing is cast
    between the two, since that usually hides a forgotten scaling.

    Raises:
        DataError: The number, rank, extents or types do not fit.
    """
    if len(inputs) != len(specs):
        names = ", ".join(f"'{spec.name}'" for spec in specs)
        raise DataError(f"The data give {len(inputs)} inputs, but the model takes {len(specs)}: {names}.")
    return tuple(_fit(array, spec) for array, spec in zip(inputs, specs, strict=True))


def _fit(array: Array, spec: InputSpec) -> Array:
    if spec.shape is not None:
        fits = array.ndim == len(spec.shape) and all(
            want is None or have == want for have, want in zip(array.shape[1:], spec.shape[1:], strict=True)
        )
        if not fits:
            raise DataError(f"The data for input '{spec.name}' have shape {in_words(array.shape)}; the model wants "
                            f"{in_words(spec.shape)}.")  # fmt: skip
    if spec.dtype is None or array.dtype == spec.dtype:
        return array
    if _kind(array.dtype) != _kind(spec.dtype):
        raise DataError(f"The data for input '{spec.name}' are of type {array.dtype}; the model wants {spec.dtype}.")
    return array.astype(spec.dtype)


def _kind(dtype: np.dtype) -> str:
    """f for floats (bfloat16 is 'V' to numpy), i for integers of either sign, else numpy's letter."""
    if dtype.name.startswith(("bfloat", "float")):
        return "f"
    return "i" if dtype.kind in "iu" else dtype.kind


def fit_source(source: Source, specs: Sequence[InputSpec]) -> Source:
    """A source that gives only checked and cast batches; data in memory are checked at once, others as they come."""
    if isinstance(source, Arrays):
        return Arrays(fit_inputs(source.inputs, specs), source.targets)
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
            yield Batch(fit_inputs(batch.inputs, self.specs), batch.targets)


class FittedRows(Fitted):
    """The same for a source whose samples can be picked by number."""

    def rows(self, indices: Array) -> Batch:
        batch = self.whole.rows(indices)  # type: ignore[attr-defined]
        return Batch(fit_inputs(batch.inputs, self.specs), batch.targets)


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
        whole = [(source.count, *spec.shape[1:]) for spec in specs]
        names = [spec.name for spec in specs]
        return Arrays(source.inputs, tuple(map(fit_target, source.targets, whole, names)))
    return Targeted(source, tuple(specs)) if not hasattr(source, "rows") else TargetedRows(source, tuple(specs))


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
        return Batch(batch.inputs, tuple(map(_fit_batch, batch.targets, self.specs)))


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


def fixed_batch(model: ir.Model) -> int | None:
    """The batch size that the model declares, where its inputs have one and agree on it."""
    sizes = {spec.shape[0] if spec.shape else None for spec in input_specs(model)}
    return sizes.pop() if len(sizes) == 1 else None
