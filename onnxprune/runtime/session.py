"""A model in any form becomes an ONNX Runtime session. ONNX Runtime's errors become ours, one sentence each."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune import model_io
from onnxprune.errors import DataError, ModelError, OnnxPruneError
from onnxprune.runtime import libraries, overflow

Optimize = Literal["off", "basic", "all"]
AnyModel = ir.Model | onnx.ModelProto | str | os.PathLike | bytes

_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_IN_MEMORY_LIMIT = 32 << 20  # larger models go through a temporary file with external data, which ORT maps
COPY_LIMIT = 512 << 20  # larger ones, with 16-bit floats counted as float32, are never copied into memory,
_CHECK_LIMIT = 128 << 20  # nor are larger ones than this where outputs count, and not how fast they come
_SMALL = 1 << 20  # bytes of a weight, whose copy in another type does not matter
_ERRORS_ONLY = 3
# Element types that numpy lacks: (what ONNX Runtime calls them, numpy type of the same bits, ml_dtypes type).
_EXTENDED: dict[str, tuple[type, type]] = {
    "tensor(bfloat16)": (np.uint16, ml_dtypes.bfloat16),
    "tensor(float8e4m3fn)": (np.uint8, ml_dtypes.float8_e4m3fn),
    "tensor(float8e4m3fnuz)": (np.uint8, ml_dtypes.float8_e4m3fnuz),
    "tensor(float8e5m2)": (np.uint8, ml_dtypes.float8_e5m2),
    "tensor(float8e5m2fnuz)": (np.uint8, ml_dtypes.float8_e5m2fnuz),
}


def make_session(
    model: AnyModel,
    *,
    optimize: Optimize = "basic",
    threads: int = 1,
    lean: bool = False,
    mapped: bool = False,
    exact: bool = True,
    error: type[OnnxPruneError] = ModelError,
) -> ort.InferenceSession:
    """Create a session on the CPU.

    Args:
        model: A model in memory, a path, or serialised bytes.
        optimize: ONNX Runtime's graph optimisations. Only "off" and "basic" are exact: above that it rewrites int8
            DequantizeLinear + MatMul and is off by 1e-2. "all" is what a deployment runs: use it for latency.
        threads: Threads inside an operator. With 1 all work is done on the calling thread, so that its CPU time counts.
        lean: Give memory back as soon as a value is not needed any more. By default it is kept for the next run, in
            pieces that double, which is faster for small values.
        mapped: Leave the weights in a file, also of a small model, as those of a large one always are: for a session
            that is run once or twice.
        exact: Let no product of integers overflow in a model in memory, where `optimize` is not "all"; see `overflow`.
            Two forms of a model with the same numbers in the same places overflow alike: they are compared without.
        error: What to raise; ModelError blames the input, VerificationError the result.

    Raises:
        OnnxPruneError: Of type `error`: ONNX Runtime does not accept the model.
    """
    options = libraries.session_options()
    options.graph_optimization_level = _LEVELS[optimize]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY + 1
    if lean:
        _give_back(options)
    if isinstance(model, onnx.ModelProto):
        model = model_io.load_any(model)
    exact = exact and optimize != "all"
    left_out = overflow.make_exact(options, model) if exact and isinstance(model, ir.Model) else ()
    try:
        if isinstance(model, ir.Model):
            content: str | bytes
            if mapped:
                return _from_file(model, options, left_out, large=True)
            size, content = model_io.to_bytes_within(model, _IN_MEMORY_LIMIT)
            if size > _IN_MEMORY_LIMIT:
                limit = COPY_LIMIT if optimize == "all" else _CHECK_LIMIT
                large = size + _bytes_of_halves(model) > limit
                return _from_file(model, options, left_out, large=large, casts=not _computes_as_stored(model))
        else:
            content = model if isinstance(model, bytes) else os.fspath(model)
        return _session(content, options, left_out)
    except OnnxPruneError:
        raise
    except Exception as failure:
        missing = libraries.operators_of_libraries(model)
        if missing:
            raise error(libraries.sentence_on(missing)) from failure
        raise error(f"ONNX Runtime does not load the model: {one_sentence(failure)}.") from failure


def run(
    session: ort.InferenceSession,
    feeds: Mapping[str, npt.NDArray[Any]],
    outputs: Iterable[str] | None = None,
    *,
    error: type[OnnxPruneError] = DataError,
) -> dict[str, Any]:
    """Run a session; returns output name -> array (a list of arrays for a sequence), all outputs by default.

    Raises:
        OnnxPruneError: Of type `error`: ONNX Runtime could not run these inputs.
    """
    names = list(outputs) if outputs is not None else [value.name for value in session.get_outputs()]
    try:
        if _is_extended(session):
            return _run_extended(session, feeds, names)
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except OnnxPruneError as failure:  # of a block, whose words are ours
        raise (error(str(failure)) if isinstance(failure, DataError) else failure) from None
    except Exception as failure:
        raise error(f"ONNX Runtime does not run the model: {one_sentence(failure)}.") from failure


def one_sentence(failure: Exception) -> str:
    """The first line of an ONNX Runtime message that tells something, without error codes and source locations."""
    text = str(failure).strip() or type(failure).__name__
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/\S+\.(?:cc|h|cpp):\d+ .*?\) ", "", text.splitlines()[0])
    return text.strip().rstrip(". ")


def _from_file(
    model: ir.Model, options: ort.SessionOptions, left_out: Sequence[str], *, large: bool, casts: bool = True
) -> ort.InferenceSession:
    """A session whose weights lie in a file, which the operating system reads where they are used.

    Weights of a large model stay there. ONNX Runtime calculates with 16-bit floats in float32 on the CPU: in the order
    of priorities it casts each weight right before its layer, and without an arena it frees it behind the layer. Where
    nothing is cast the arena stays: the C library seldom uses pieces again that were asked for at aligned places.
    """
    if large:
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        if casts:
            _give_back(options)
        else:
            options.enable_mem_pattern = False
    with model_io.scratch_file(model) as path:
        return _session(str(path), options, left_out)


def _session(content: str | bytes, options: ort.SessionOptions, left_out: Sequence[str]) -> ort.InferenceSession:
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"], disabled_optimizers=[*left_out])


def _give_back(options: ort.SessionOptions) -> None:
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False


def expanded_size(model: ir.Model) -> int:
    """Return the bytes of a model in which 16-bit floats are 32 bits wide, as ONNX Runtime computes on the CPU."""
    return model_io.serialized_size(model) + _bytes_of_halves(model)


def _bytes_of_halves(model: ir.Model) -> int:
    """How many bytes of a model are 16-bit floats."""
    tensors = (value.const_value for value in model_io.all_initializers(model))
    return sum(t.nbytes for t in tensors if t is not None and t.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16))


def _computes_as_stored(model: ir.Model) -> bool:
    """Whether no large weight is cast or dequantised before it is used."""
    tensors = (value.const_value for value in model_io.all_initializers(model))
    floats = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    return all(t is None or t.dtype in floats or t.nbytes < _SMALL for t in tensors)


def _is_extended(session: ort.InferenceSession) -> bool:
    return any(value.type in _EXTENDED for value in (*session.get_inputs(), *session.get_outputs()))


def _run_extended(
    session: ort.InferenceSession, feeds: Mapping[str, npt.NDArray[Any]], names: list[str]
) -> dict[str, Any]:
    """As `run`, for element types that ONNX Runtime's numpy interface lacks."""
    types = {value.name: value.type for value in session.get_inputs()}
    values = {}
    for name, array in feeds.items():
        if types.get(name) in _EXTENDED:
            bits, _ = _EXTENDED[types[name]]
            element_type = ir.DataType.from_numpy(array.dtype).value
            array = np.ascontiguousarray(array).view(bits)
            values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, element_type)
        else:
            values[name] = ort.OrtValue.ortvalue_from_numpy(array)
    results = session.run_with_ort_values(names, values)
    return {name: _to_numpy(value) for name, value in zip(names, results, strict=True)}


def _to_numpy(value: ort.OrtValue) -> npt.NDArray[Any]:
    if value.data_type() not in _EXTENDED:
        return value.numpy()
    bits, dtype = _EXTENDED[value.data_type()]
    shape = value.shape()
    count = int(np.prod(shape))
    if not count:
        return np.zeros(shape, dtype)
    buffer = (ctypes.c_char * (count * np.dtype(bits).itemsize)).from_address(value.data_ptr())
    return np.frombuffer(bytes(buffer), dtype=bits).view(dtype).reshape(shape)
