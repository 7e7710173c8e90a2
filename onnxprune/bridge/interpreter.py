"""The same graph run line by line, for debugging: every intermediate value by its ONNX name, and the first one that
differs from ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import fx

from onnxprune.bridge.dtypes import to_numpy
from onnxprune.bridge.module import ModelLike, OnnxModule, load_ir
from onnxprune.bridge.nodes import describe
from onnxprune.errors import ModelError
from onnxprune.runtime import libraries
from onnxprune.runtime.overflow import make_exact


class Interpreter(fx.Interpreter):
    """Runs an OnnxModule node by node and keeps each ONNX value. An error names the ONNX node it came from."""

    def __init__(self, module: OnnxModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one line of the generated code."""
        try:
            result = super().run_node(n)
        except Exception as error:
            node, operator = n.meta.get("onnx_node", n.name), n.meta.get("onnx_operator", n.op)
            raise ModelError(f"Node {node!r} ({operator}) failed in the bridge: {error}") from error
        if "onnx_value" in n.meta:
            self.values[n.meta["onnx_value"]] = result
        return result


def intermediate_values(module: OnnxModule, *inputs: torch.Tensor) -> dict[str, Any]:
    """Every value of the outer graph by its ONNX name; sizes and integers carried in floats as the bridge holds them.

    Raises:
        ModelError: A node failed; the message names it.
    """
    interpreter = Interpreter(module)
    with torch.no_grad():
        interpreter.run(*inputs)
    return interpreter.values


@dataclass(frozen=True)
class Mismatch:
    """A value on which the bridge and ONNX Runtime differ: the largest difference, relative to the largest value."""

    value: str
    node: str
    error: float


def compare_with_runtime(
    module: OnnxModule, model: ModelLike, inputs: Mapping[str, np.ndarray], every_value: bool = False
) -> list[Mismatch]:
    """Differences between module and ONNX Runtime (graph optimisations off) in graph order, zero ones included.

    Args:
        module: Made by `to_torch` from `model`.
        model: The model to run in ONNX Runtime.
        inputs: Arrays by graph input name.
        every_value: Compare every intermediate value, not only the outputs.
    """
    source = load_ir(model).clone()
    with torch.no_grad():
        values = intermediate_values(module, *(torch.from_numpy(np.array(inputs[name])) for name in module.input_names))
        results = module(*(torch.from_numpy(np.array(inputs[name])) for name in module.input_names))
    values.update(zip(module.output_names, results if isinstance(results, tuple) else (results,), strict=True))
    wanted = [value for node in source.graph for value in node.outputs if value.name in values]
    if every_value:
        known = {value.name for value in source.graph.outputs}
        source.graph.outputs.extend(value for value in wanted if value.name not in known and value.type is not None)
    names = [value.name for value in source.graph.outputs]
    references = runtime_outputs(source, inputs)
    producers = {value.name: node for node in source.graph for value in node.outputs}
    return [
        Mismatch(
            name or "", describe(producers[name]) if name in producers else "", relative_error(values[name], reference)
        )
        for name, reference in zip(names, references, strict=True)
        if name in values
    ]


def runtime_outputs(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of ONNX Runtime on the CPU with graph optimisations off: the exact oracle."""
    options = libraries.session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    left_out = [*make_exact(options, model)]
    content, providers = ir.to_proto(model).SerializeToString(), ["CPUExecutionProvider"]
    session = ort.InferenceSession(content, options, providers=providers, disabled_optimizers=left_out)
    return list(session.run(None, dict(inputs)))


def relative_error(value: Any, reference: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute value of the reference; inf if shapes differ."""
    array = to_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.shape != np.shape(reference):
        return float("inf")
    if array.size == 0:
        return 0.0
    left, right = array.astype(np.float64), np.asarray(reference).astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    scale = np.max(np.abs(right), where=np.isfinite(right), initial=1e-6)
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(left - right))
    worst = float(np.max(difference))
    return worst / float(scale) if np.isfinite(worst) else float("inf")
