"""How far a packed model's outputs are from the original's, measured in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from onnxprune.errors import DataError
from onnxprune.model_io.bodies import graphs_of
from onnxprune.runtime import libraries

Array = NDArray[Any]
_PROTO_LIMIT = 2**31 - 2**20


@dataclass(frozen=True)
class OutputError:
    """Over all outputs and batches.

    Attributes:
        max_abs: Largest absolute difference of any element.
        relative: ||a - b|| / ||a||.
        identical: Whether every bit is the same.
    """

    max_abs: float
    relative: float
    identical: bool


def output_error(
    reference: ir.Model, candidate: ir.Model, batches: Sequence[Mapping[str, Array]] | None = None, *, seed: int = 0
) -> OutputError:
    """Run both models on the same inputs and compare.

    Args:
        reference: The model before packing.
        candidate: The model after.
        batches: Inputs by name; without them one batch of standard-normal numbers (zeros for integer inputs).
        seed: For the random batch.

    Raises:
        DataError: A batch does not fit the model's inputs.
    """
    before, after = session(reference), session(candidate)
    square_error, square, worst, identical = 0.0, 0.0, 0.0, True
    for batch in batches if batches is not None else [random_batch(before, seed)]:
        try:
            pairs = list(zip(before.run(None, dict(batch)), after.run(None, dict(batch)), strict=True))
        except (ValueError, RuntimeError, InvalidArgument) as error:
            raise DataError(f"The batch does not fit the model's inputs: {error}") from error
        for a, b in ((np.asarray(a), np.asarray(b)) for a, b in pairs):
            identical &= a.dtype == b.dtype and a.tobytes() == b.tobytes()
            if a.dtype.kind in "iufb":
                wide = a.astype(np.float64)
                difference = b.astype(np.float64) - wide
                worst = max(worst, float(np.abs(difference).max(initial=0.0)))
                square_error, square = square_error + float((difference**2).sum()), square + float((wide**2).sum())
    relative = float(np.sqrt(square_error / square)) if square else float(square_error > 0)
    return OutputError(worst, relative, identical)


def session(model: ir.Model) -> ort.InferenceSession:
    """A single-threaded CPU session at the default optimisation level, also for models beyond 2 GB."""
    options = libraries.session_options()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    tensors = [v.const_value for g in graphs_of(model) for v in g.initializers.values() if v.const_value is not None]
    small = sum(t.nbytes for t in tensors) < _PROTO_LIMIT
    if small and not any(isinstance(t, ir.ExternalTensor) for t in tensors):
        return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model.clone(), path, external_data="model.data")
        return ort.InferenceSession(str(path), options, providers=providers)


def random_batch(runner: ort.InferenceSession, seed: int) -> dict[str, Array]:
    """Standard-normal floats, zeros for other types; unknown dimensions are 1."""
    generator = np.random.default_rng(seed)
    batch: dict[str, Array] = {}
    for put in runner.get_inputs():
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in put.shape]
        kind = _NUMPY_TYPES.get(put.type)
        if kind is None:
            raise DataError(f"Input {put.name!r} is of {put.type}; give the batches to compare on.")
        floating = np.dtype(kind).kind == "f"
        batch[put.name] = generator.standard_normal(shape).astype(kind) if floating else np.zeros(shape, kind)
    return batch


_NUMPY_TYPES: dict[str, type] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}
