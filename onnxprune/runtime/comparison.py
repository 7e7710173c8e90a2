"""How far apart the outputs of two models are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.runtime.session import AnyModel, Optimize, make_session, run


@dataclasses.dataclass(frozen=True)
class OutputDifference:
    """The difference of one output.

    Attributes:
        max_rel: Largest difference, relative to the largest magnitude of the reference output.
        max_abs: Largest difference.
        finite: Whether every element of the reference is finite; where none is, agreement says little.
    """

    max_rel: float
    max_abs: float
    finite: bool = True


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The difference of two models over all outputs: the worst, and each by name."""

    max_rel: float
    max_abs: float
    outputs: Mapping[str, OutputDifference]

    @property
    def finite(self) -> bool:
        """Whether every reference output is finite throughout."""
        return all(output.finite for output in self.outputs.values())


def relative_difference(a: Any, b: Any) -> float:
    """max |a - b| / max |a| over all elements; `a` is the reference.

    NaN equals NaN and infinity the same infinity; anything else beside them is an infinite difference, as is a
    different shape. For strings, 0 or infinity. Where the reference is zero throughout, 0 if b is too, else infinity.
    """
    return _difference(a, b).max_rel


def compare(
    a: AnyModel,
    b: AnyModel,
    feeds: Mapping[str, npt.NDArray[Any]],
    *,
    optimize: Optimize = "basic",
    error: type[OnnxPruneError] = VerificationError,
) -> Agreement:
    """Run two models on the same inputs, one session at a time; `a` is the reference.

    Raises:
        ModelError: ONNX Runtime does not load `a`.
        OnnxPruneError: Of type `error`: it does not load or run `b`, or the outputs have other names.
    """
    expected = run(make_session(a, optimize=optimize), feeds)
    actual = run(make_session(b, optimize=optimize, error=error), feeds, error=error)
    return compare_outputs(expected, actual, error=error)


def compare_outputs(
    expected: Mapping[str, Any], actual: Mapping[str, Any], *, error: type[OnnxPruneError] = VerificationError
) -> Agreement:
    """The difference of two runs by output name; sequences are compared element by element.

    Raises:
        OnnxPruneError: Of type `error`: the outputs have other names.
    """
    if set(expected) != set(actual):
        other = ", ".join(f"'{name}'" for name in sorted(set(expected) ^ set(actual)))
        raise error(f"the models differ in their outputs: only one of them has {other}.")
    outputs = {name: _difference(expected[name], actual[name]) for name in expected}
    return Agreement(
        max_rel=max((output.max_rel for output in outputs.values()), default=0.0),
        max_abs=max((output.max_abs for output in outputs.values()), default=0.0),
        outputs=outputs,
    )


def _difference(a: Any, b: Any) -> OutputDifference:
    if isinstance(a, (list, tuple)) or isinstance(b, (list, tuple)):
        return _sequence_difference(a, b)
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return OutputDifference(math.inf, math.inf)
    if a.dtype.kind in "OSU" or b.dtype.kind in "OSU":
        gap = 0.0 if np.array_equal(a, b) else math.inf
        return OutputDifference(gap, gap)
    a, b = _wide(a), _wide(b)
    finite = bool(np.isfinite(a).all())
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return OutputDifference(0.0, 0.0, finite)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(np.where(same, 0, a) - np.where(same, 0, b))
    gap = float(np.max(np.where(np.isnan(gaps), np.inf, gaps)))
    scale = float(np.max(np.abs(a), where=np.isfinite(a), initial=0.0))
    return OutputDifference(gap / scale if scale else math.inf, gap, finite)


def _sequence_difference(a: Any, b: Any) -> OutputDifference:
    if not isinstance(a, (list, tuple)) or not isinstance(b, (list, tuple)) or len(a) != len(b):
        return OutputDifference(math.inf, math.inf)
    parts = [_difference(x, y) for x, y in zip(a, b, strict=True)]
    return OutputDifference(
        max((part.max_rel for part in parts), default=0.0),
        max((part.max_abs for part in parts), default=0.0),
        all(part.finite for part in parts),
    )


def _wide(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """In double precision, so that differences of half floats, integers and booleans are exact enough."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
