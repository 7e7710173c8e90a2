"""What the user says about a model's inputs: which axis counts samples, and inputs that the model runs with.

Hints travel with the model, also through `Model.clone`, and are never serialised; every place that makes inputs, cuts
samples or infers shapes looks at them.

give_hints(model, sample_axes={"state": 1, "rate": None}, inputs=[{"x": array}])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import RecipeError

_KEY = "onnxprune.hints"
_MOST_NUMBERS = 1 << 28  # of one input
Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Hints:
    """What is known of the inputs beside the graph.

    Attributes:
        sample_axes: By input name, the axis that counts samples; None where one array holds for all samples.
        inputs: Whole sets of inputs that the model runs with, from ``--inputs``; they come before made-up ones.
        samples: The same from calibration or evaluation data; they are tried where made-up ones do not run.
        shapes: By input name, the shape at which figures and latency are taken.
    """

    sample_axes: Mapping[str, int | None] = field(default_factory=dict)
    inputs: tuple[Mapping[str, npt.NDArray[Any]], ...] = ()
    samples: tuple[Mapping[str, npt.NDArray[Any]], ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def hints_of(model: ir.Model) -> Hints:
    """Return what is known of the model's inputs; empty where nobody said anything."""
    hints = model.graph.meta.get(_KEY)
    return hints if isinstance(hints, Hints) else Hints()


def give_hints(
    model: ir.Model,
    *,
    sample_axes: Mapping[str, int | None] | None = None,
    inputs: Sequence[Mapping[str, npt.NDArray[Any]]] | None = None,
    samples: Sequence[Mapping[str, npt.NDArray[Any]]] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Attach hints to the model; those that are left out stay as they are.

    Raises:
        RecipeError: The model has no such input, or the input has no such axis.
    """
    hints = hints_of(model)
    if sample_axes is not None:
        _check_axes(model, sample_axes)
        hints = replace(hints, sample_axes=dict(sample_axes))
    if inputs is not None:
        hints = replace(hints, inputs=tuple(inputs))
    if samples is not None:
        hints = replace(hints, samples=tuple(samples))
    if shapes is not None:
        _check_shapes(model, shapes)
        hints = replace(hints, shapes=dict(shapes))
    model.graph.meta[_KEY] = hints


def _check_axes(model: ir.Model, axes: Mapping[str, int | None]) -> None:
    inputs = {str(v.name): v for v in model.graph.inputs if v.name not in model.graph.initializers}
    for name, axis in axes.items():
        if name not in inputs:
            raise RecipeError(f"--sample-axis: the model has no input {name!r} (it has: {', '.join(inputs)})")
        shape = inputs[name].shape
        if axis is not None and shape is not None and not 0 <= axis < len(shape):
            raise RecipeError(f"--sample-axis: the input {name!r} has {len(shape)} axes, so there is no axis {axis}")


def _check_shapes(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    inputs = {str(v.name): v for v in model.graph.inputs if v.name not in model.graph.initializers}
    for name, extents in shapes.items():
        if name not in inputs:
            raise RecipeError(f"--input-shape: the model has no input {name!r} (it has: {', '.join(inputs)})")
        shape = inputs[name].shape
        if shape is None:
            continue
        fits = len(shape) == len(extents) and all(
            not isinstance(dim, int) or dim == extent for dim, extent in zip(shape, extents, strict=True)
        )
        if not fits:
            dims = ", ".join(str(dim) if isinstance(dim, int) else str(dim.value or "any") for dim in shape)
            raise RecipeError(f"--input-shape: the input {name!r} is declared as [{dims}], not {list(extents)}")


def parse_input_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read ``NAME:1x3x224x224``.

    Raises:
        RecipeError: One is not of this form, or too large.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        parts = dims.replace(",", "x").split("x")
        if not name or not all(part.isascii() and part.isdigit() and 0 < len(part) < 10 for part in parts):
            raise RecipeError(f"--input-shape looks like image:1x3x224x224 (not {text!r})")
        shapes[name] = tuple(map(int, parts))
        if not 0 < math.prod(shapes[name]) <= _MOST_NUMBERS:
            raise RecipeError(f"--input-shape: {text!r} has no numbers, or more than {_MOST_NUMBERS:,}")
    return shapes


def parse_sample_axes(texts: Sequence[str]) -> dict[str, int | None]:
    """Read ``NAME:AXIS``, where the axis is a number from 0, or none for an input that holds for all samples.

    Raises:
        RecipeError: One is not of this form.
    """
    axes: dict[str, int | None] = {}
    for text in texts:
        name, colon, axis = text.rpartition(":")
        if not colon or not name or not (axis == "none" or axis.isdigit()):
            raise RecipeError(f"--sample-axis looks like state:1, or rate:none for an input without one (not {text!r})")
        axes[name] = None if axis == "none" else int(axis)
    return axes
