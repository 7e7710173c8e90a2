"""Run a case through the bridge and say how the result differs from what is expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from onnxprune.bridge import to_torch
from onnxprune.bridge.dtypes import from_numpy, to_numpy

from .onnx_cases import Case


def run(case: Case) -> list[np.ndarray]:
    """The outputs of the bridge."""
    module = to_torch(case.model)
    with torch.no_grad():
        results = module(*(from_numpy(np.asarray(array)) for array in case.inputs))
    results = results if isinstance(results, tuple) else (results,)
    return [to_numpy(result) for result in results]


def difference(case: Case) -> str:
    """Empty if the bridge gives the expected outputs, else what is wrong."""
    try:
        results = run(case)
    except Exception as error:  # any failure is a failed case, reported with its message
        return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    for result, expected in zip(results, case.outputs, strict=False):
        wrong = _wrong(result, np.asarray(expected), case)
        if wrong:
            return wrong
    return ""


def _wrong(result: np.ndarray, expected: np.ndarray, case: Case) -> str:
    if result.shape != expected.shape:
        return f"shape {result.shape}, expected {expected.shape}"
    held = _held(expected.dtype)
    if result.dtype != held:
        return f"type {result.dtype}, expected {held}"
    left, right = _comparable(result), _comparable(expected)
    rtol = max(case.rtol, 2**-6) if result.dtype.name == "bfloat16" else case.rtol  # as ONNX's own runner has it
    try:
        np.testing.assert_allclose(left, right, rtol=rtol, atol=case.atol)
    except AssertionError:
        with np.errstate(invalid="ignore"):
            return f"values differ by up to {np.nanmax(np.abs(left - right)):.3g}"
    return ""


def _held(dtype: Any) -> Any:
    """The type in which the bridge holds values of an ONNX type; those below a byte live in the next larger one."""
    small = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8, "float4_e2m1fn": np.float16}
    return np.dtype(small.get(dtype.name, dtype))


def _comparable(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "c" or array.dtype.name in ("int64", "uint64", "float64"):
        return array
    return array.astype(np.float64)
