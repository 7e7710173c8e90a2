"""Every operator rule against ONNX's own cases of that operator.

All inputs of a case become constants whose every axis is free, and its outputs may lose indices. Random units go, as
the rule allows: what is left of the outputs must equal the original outputs on removed inputs zeroed, at the surviving
indices; where the rule says that removed indices of an output are zero, they must be. The same must hold when none of
the inputs is zeroed, or one of them is not, for a rule must not count on more zeros than it was told of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.structure import registry

from . import contrib_cases, freedom
from .form_cases import all_cases
from .node_cases import Case
from .twins import NoKernel, compare

# Rules that leave nothing free, and those whose free units other tests show.
_NOTHING_FREE = {"EyeLike", "NonZero", "OneHot", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike", "Range", "Shape", "Size", "com.microsoft::MatMulNBits"}  # fmt: skip
_ELSEWHERE = {"If", "Loop"}  # test_random_graphs.py
_NO_KERNEL = {"com.microsoft::BiasAdd", "com.microsoft::GemmFloat8", "com.microsoft::GroupNorm"}  # GPUs only

# Tolerances relative to the largest output; names of cases say their types.
_COARSE = {"float16": 5e-3, "bfloat16": 5e-2, "FLOAT16": 5e-3, "BFLOAT16": 5e-2, "fp16": 5e-3, "bf16": 5e-2}


def _operators() -> list[str]:
    return [name for name in registry.registered() if "::" not in name or name in contrib_cases.CASES]


@pytest.mark.parametrize("operator", _operators())
def test_rule_keeps_its_promise(operator: str, covered: Counter[str]) -> None:
    covered["operators"] += 1
    for case in all_cases(operator):
        operands = _reals(case) if f"{operator}/{case.name}" in freedom.EXPECTED else []  # once for each form
        try:
            _check(case, covered, operator, operands if len(operands) > 1 else [])
        except NoKernel:
            covered[f"{operator}: not run"] += 1


def test_every_rule_is_shown_to_free_something(covered: Counter[str]) -> None:
    if covered["operators"] < len(_operators()):
        pytest.skip("it counts what all tests above have run in the same process")
    bare = {name for name in registry.registered() if not covered[f"{name}: with free units"]}
    assert bare - _NOTHING_FREE - _ELSEWHERE - _NO_KERNEL == set()


def _check(case: Case, covered: Counter[str], operator: str, one_by_one: Iterable[str]) -> None:
    """Check a case, also with each of some operands left as it is: a bias, a state, updates."""
    tolerance = max((t for word, t in _COARSE.items() if word in case.name), default=1e-4)
    seed = sum(map(ord, case.name))
    found = compare(case.model, 0.5, seed)
    outcomes = [found, compare(case.model, 0.5, seed, unmasked=tuple(case.constants))]
    outcomes += [compare(case.model, 0.5, seed, unmasked=(name,)) for name in one_by_one]
    if found.mixed:
        outcomes.append(compare(case.model, 0.5, seed, exact=False))
    for outcome in outcomes:
        assert outcome.error <= tolerance, (case.name, outcome)
        assert not outcome.false_zeros, (case.name, outcome)
    covered[f"{operator}: cases"] += 1
    covered[f"{operator}: with free units"] += any(o.removed for o in outcomes)


def _reals(case: Case) -> list[str]:
    return [k for k, v in case.constants.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f" or _real(v)]


def _real(tensor: Any) -> bool:
    return isinstance(tensor, onnx.TensorProto) and ir.DataType(tensor.data_type).is_floating_point()


@pytest.fixture(scope="module")
def covered() -> Iterator[Counter[str]]:
    """Counts cases, and prints them as a table at the end (``pytest -s``)."""
    counts: Counter[str] = Counter()
    yield counts
    for name in sorted({key.rpartition(": ")[0] for key in counts} - {""}):
        parts = [f"{counts[f'{name}: {what}']} {what}" for what in ("cases", "with free units", "not run")]
        print(f"{name:45s} {', '.join(parts)}")
