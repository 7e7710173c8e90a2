"""What the bridge's tests share: running a model in ONNX Runtime and in the bridge, and what trains."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx_ir as ir
import onnxruntime as ort
import torch

from onnxprune.bridge import OnnxModule, to_torch
from onnxprune.bridge.dtypes import from_numpy, to_numpy
from onnxprune.runtime.overflow import make_exact
from onnxprune.training.widen import widen

SHARED = Path(os.environ.get("ONNXPRUNE_SHARED") or Path(__file__).resolve().parents[3] / "shared")

F32, F16, I64, BOOL = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64, onnx.TensorProto.BOOL)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[Any]]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 18,
    microsoft: bool = False,
) -> onnx.ModelProto:
    """A model of some nodes: inputs by name with (type, shape), outputs by name, initializers by name."""
    opsets = [oh.make_opsetid("", opset)] + ([oh.make_opsetid("com.microsoft", 1)] if microsoft else [])
    graph = oh.make_graph(
        list(nodes),
        "graph",
        [oh.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    return oh.make_model(graph, opset_imports=opsets, ir_version=10 if opset <= 21 else 11)


def runtime(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of ONNX Runtime without graph optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    left_out = [*make_exact(options, ir.from_proto(proto))]
    content, providers = proto.SerializeToString(), ["CPUExecutionProvider"]
    session = ort.InferenceSession(content, options, providers=providers, disabled_optimizers=left_out)
    return list(session.run(None, dict(feeds)))


def bridge(module: torch.nn.Module, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of the bridge's module."""
    with torch.no_grad():
        results = module(*(from_numpy(np.asarray(feeds[name])) for name in module.input_names))  # type: ignore[operator,union-attr]
    return [to_numpy(result) for result in (results if isinstance(results, tuple) else (results,))]


def assert_same(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], rtol: float = 1e-4) -> None:
    """Same shapes and types, and values within `rtol` of the largest one."""
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        scale = max(float(np.max(np.abs(right.astype(np.float64)), initial=0, where=np.isfinite(right))), 1e-6)
        np.testing.assert_allclose(left.astype(np.float64), right.astype(np.float64), rtol=0, atol=rtol * scale)


def distance(values: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """The largest difference of any output, over the largest absolute value of that output in the reference."""
    worst = 0.0
    for left, right in zip(values, reference, strict=True):
        scale = max(float(np.max(np.abs(right.astype(np.float64)), initial=0)), 1e-6)
        worst = max(worst, float(np.max(np.abs(left.astype(np.float64) - right), initial=0)) / scale)
    return worst


def in_double(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float64: all its float32 numbers, casts and declared types."""
    model = ir.from_proto(proto)
    widen(model, {ir.DataType.FLOAT}, ir.DataType.DOUBLE)
    return ir.to_proto(model)


def within(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], rtol: float) -> bool:
    """Whether `assert_same` holds."""
    try:
        assert_same(ours, theirs, rtol)
    except AssertionError:
        return False
    return True


def assert_like_runtime(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], rtol: float = 1e-4) -> OnnxModule:
    """The bridge gives what ONNX Runtime gives; returns the module."""
    module = to_torch(proto)
    assert_same(bridge(module, feeds), runtime(proto, feeds), rtol)
    return module


def parameters_without_gradient(module: OnnxModule, feeds: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the parameters that a loss over all float outputs sends no gradient to."""
    module.zero_grad()
    results = module(*(from_numpy(np.asarray(feeds[name])) for name in module.input_names))
    results = results if isinstance(results, tuple) else (results,)
    loss = sum(result.float().square().sum() for result in results if result.is_floating_point())
    loss.backward()  # type: ignore[union-attr]
    return [name for name, parameter in module.named_parameters() if parameter.grad is None]


def buffers_with_gradient(module: OnnxModule, feeds: Mapping[str, np.ndarray], names: set[str]) -> list[str]:
    """Those of the named initializers, buffers all, that a gradient could reach: they should have been parameters."""
    asked = [buffer for name, buffer in module.named_buffers() if module.onnx_names.get(name) in names]
    for buffer in asked:
        buffer.requires_grad_(True)
    parameters_without_gradient(module, feeds)
    reached = [name for name, buffer in module.named_buffers() if buffer.grad is not None]
    for buffer in asked:
        buffer.requires_grad_(False)
    return reached


def rest_of_the_float_initializers(module: OnnxModule, source: ir.Model) -> set[str]:
    """Float initializers that the bridge keeps as buffers, or has no use for."""
    trained = {module.onnx_names[name] for name, _ in module.named_parameters() if name in module.onnx_names}
    floats = {
        name
        for name, value in source.graph.initializers.items()
        if value.const_value is not None and value.const_value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    }
    return floats - trained


def generator(seed: int = 0) -> np.random.Generator:
    """Numbers for inputs."""
    return np.random.default_rng(seed)
