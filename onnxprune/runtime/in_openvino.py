"""A model in OpenVINO, beside ONNX Runtime: what it computes there, and how long it takes."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune import model_io
from onnxprune.errors import VerificationError
from onnxprune.graph.hints import Feeds
from onnxprune.runtime.comparison import compare_outputs
from onnxprune.runtime.latency import alternate_runs
from onnxprune.runtime.session import make_session, one_sentence, run
from onnxprune.structure.machine import has_amx

_ROUNDS = 9
_ONE_THREAD = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}  # OpenVINO may calculate in bfloat16 else, which is not compared


@dataclass(frozen=True)
class EngineFigure:
    """What an engine did with a model.

    Attributes:
        engine: Its name and version.
        ratio: Time of the model over that of the original, CPU seconds of one run, one thread, in alternation.
        zeros_ratio: Time of the model with kernels for zeros over its own without them.
        difference: Largest difference of the outputs from ONNX Runtime's, relative to the largest.
        sparse_layers: How many layers ran in kernels for zeros.
        layers: How many matrix products there were.
        machine_fits: Whether the processor has what the kernels for zeros need.
    """

    engine: str
    ratio: float
    zeros_ratio: float
    difference: float
    sparse_layers: int
    layers: int
    machine_fits: bool


def is_installed() -> bool:
    """Say whether the package openvino can be imported."""
    return importlib.util.find_spec("openvino") is not None


def measure_in_openvino(original: ir.Model, model: ir.Model, feeds: Feeds, config: Mapping[str, Any]) -> EngineFigure:
    """Measure a model in OpenVINO against the original, and its outputs against ONNX Runtime's.

    Args:
        original: The dense model.
        model: The pruned one, as it will be written.
        feeds: Inputs of both.
        config: Properties of OpenVINO's CPU device that turn on kernels for zeros.

    Raises:
        VerificationError: OpenVINO does not run one of them.
    """
    import openvino

    version = f"OpenVINO {openvino.__version__.partition('-')[0]}"
    dense = _compiled(original, _ONE_THREAD)
    without, sparse = _compiled(model, _ONE_THREAD), _compiled(model, {**_ONE_THREAD, **config})
    exact = _compiled(model, {**_ONE_THREAD, **_FLOAT32, **config})
    expected = run(make_session(model), feeds)
    agreement = compare_outputs(expected, _outputs(exact, feeds, list(expected)))
    calls = [_caller(compiled, feeds) for compiled in (dense, without, sparse)]
    ratio, zeros_ratio = (
        alternate_runs(reference, calls[2], rounds=_ROUNDS, clock=time.process_time).ratio for reference in calls[:2]
    )
    sparse_layers, layers = _kernels(sparse)
    return EngineFigure(version, ratio, zeros_ratio, agreement.max_rel, sparse_layers, layers, has_amx())


def _compiled(model: ir.Model, config: Mapping[str, Any]) -> Any:
    import openvino

    try:
        with model_io.scratch_file(model) as path:
            return openvino.Core().compile_model(str(path), "CPU", dict(config))
    except Exception as failure:  # whatever OpenVINO raises
        raise VerificationError(f"OpenVINO does not load the model: {one_sentence(failure)}.") from failure


def _outputs(compiled: Any, feeds: Feeds, names: list[str]) -> dict[str, npt.NDArray[Any]]:
    """The outputs by the names that ONNX gives them, which come in the order of the graph."""
    try:
        results = compiled(dict(feeds))
    except Exception as failure:
        raise VerificationError(f"OpenVINO does not run the model: {one_sentence(failure)}.") from failure
    return {name: np.array(results[i]) for i, name in enumerate(names)}


def _caller(compiled: Any, feeds: Feeds) -> Callable[[], object]:
    request, inputs = compiled.create_infer_request(), dict(feeds)

    def once() -> None:
        request.infer(inputs)

    return once


def _kernels(compiled: Any) -> tuple[int, int]:
    """How many matrix products run in kernels for zeros, and how many there are."""
    kernels = []
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if "layerType" in facts and facts["layerType"].astype(str) == "FullyConnected":
            kernels.append(facts["primitiveType"].astype(str))
    return sum("sparse" in kernel for kernel in kernels), len(kernels)
