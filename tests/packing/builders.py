"""Small models and helpers shared by the packing tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

DECODER_OPERATORS = {"CumSum", "ScatterElements", "GatherElements", "ConstantOfShape", "Gather"}
LEVELS = (ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def sparse_array(shape: tuple[int, ...], sparsity: float, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Heavy-tailed numbers, the smallest set to zero."""
    array = np.random.default_rng(seed).standard_t(5, shape)
    threshold = np.quantile(np.abs(array), sparsity)
    return np.where(np.abs(array) < threshold, 0, array).astype(dtype)


def proto(
    nodes: list[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    inputs: dict[str, list[int]],
    outputs: dict[str, list[int]],
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A float model."""
    ins = [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in inputs.items()]
    outs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in outputs.items()]
    graph = helper.make_graph(nodes, "g", ins, outs, [numpy_helper.from_array(v, k) for k, v in tensors.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def matmul(weight: np.ndarray, opset: int = 17) -> onnx.ModelProto:
    """y = x @ weight."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return proto([node], {"w": weight}, {"x": [2, weight.shape[0]]}, {"y": [2, weight.shape[1]]}, opset)


def network(sparsity: float, opset: int = 17) -> onnx.ModelProto:
    """Conv -> Relu -> GlobalAveragePool -> Flatten -> Gemm, with biases."""
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    tensors = {
        "conv.weight": sparse_array((64, 16, 3, 3), sparsity, 1),
        "conv.bias": sparse_array((64,), 0.0, 2),
        "fc.weight": sparse_array((100, 64), sparsity, 3),
        "fc.bias": sparse_array((100,), 0.0, 4),
    }
    return proto(nodes, tensors, {"x": [1, 16, 8, 8]}, {"y": [1, 100]}, opset)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], level: Any = LEVELS[1]) -> list[np.ndarray]:
    """Outputs from ONNX Runtime."""
    return [np.asarray(y) for y in session(model, level).run(None, feeds)]


def session(model: onnx.ModelProto, level: Any, save: str = "") -> ort.InferenceSession:
    """A single-threaded CPU session; `save` is where the optimised graph goes."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if save:
        options.optimized_model_filepath = save
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def operators_left(model: onnx.ModelProto, level: Any, path: str) -> set[str]:
    """Operators, also of subgraphs, in the graph that ONNX Runtime runs."""
    session(model, level, path)
    return {node.op_type for graph in ir.load(path).graphs() for node in graph}


def initializers(model: ir.Model) -> dict[str, bytes]:
    """Every initializer of every graph as type, shape and bytes."""
    found = {}
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            assert value.const_value is not None
            tensor = value.const_value
            found[name] = f"{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.tobytes()
    return found
