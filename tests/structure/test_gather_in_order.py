"""A Gather that picks all of a flat value in order, as dynamo writes ``as_strided``, ties units as a Reshape does."""

from __future__ import annotations

import numpy as np
import onnx
import oracle
from onnx import TensorProto, helper, numpy_helper

from onnxprune.structure.analysis import analyse


def _model(stride: int) -> onnx.ModelProto:
    """Pooled channels [batch, 6] are flattened and picked at batch * stride + channel."""
    rng = np.random.default_rng(0)
    arrays = {
        "kernel": rng.standard_normal((6, 3, 3, 3), np.float32),
        "weight": rng.standard_normal((6, 4), np.float32),
        "flat": np.array([-1]),
        "zero": np.array(0),
        "one": np.array(1),
        "last": np.array([1]),
        "stride": np.array(stride),
        "channels": np.arange(6)[None],
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["conv"]),
        helper.make_node("GlobalAveragePool", ["conv"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "flat"], ["row"]),
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Range", ["zero", "batch", "one"], ["range"]),
        helper.make_node("Mul", ["range", "stride"], ["starts"]),
        helper.make_node("Unsqueeze", ["starts", "last"], ["column"]),
        helper.make_node("Add", ["column", "channels"], ["indices"]),
        helper.make_node("Gather", ["row", "indices"], ["strided"]),
        helper.make_node("MatMul", ["strided", "weight"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "as_strided",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 5, 5])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_in_order_it_carries_the_channels() -> None:
    verdict = oracle.check(lambda: oracle.normalised(_model(stride=6)), 0.5)
    assert verdict.removed == 3
    assert verdict.good


def test_out_of_order_it_pins_the_channels() -> None:
    structure = analyse(oracle.normalised(_model(stride=1)))
    assert {site.value.name for group in structure.groups for site in group.sites} == {"weight", "channels"}
    assert oracle.check(lambda: oracle.normalised(_model(stride=1)), 0.5).good
