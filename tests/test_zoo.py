"""The zoo itself: every export computes what its PyTorch source computes, at any batch size and sequence length.

ONNXPRUNE_ZOO=full runs every opset instead of one per exporter (some ten minutes).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import zoo

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.skipif(not zoo.HAS_TORCH, reason="the zoo is built with PyTorch, which is not installed")

CASES = zoo.cases(full=os.environ.get("ONNXPRUNE_ZOO") == "full")


@pytest.mark.parametrize(("name", "exporter", "opset"), CASES, ids=["-".join(map(str, case)) for case in CASES])
def test_export_computes_what_pytorch_computes(name: str, exporter: str, opset: int) -> None:
    model = zoo.export(name, exporter, opset)
    onnx.checker.check_model(model)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == opset
    lengths = [None] if zoo.ARCHITECTURES[name].sequence_axis is None else [None, 9]
    for batch, sequence in [(1, lengths[0]), (3, lengths[-1])]:
        _assert_same_outputs(name, model, batch, sequence)


def _assert_same_outputs(name: str, model: onnx.ModelProto, batch: int, sequence: int | None) -> None:
    import torch

    architecture = zoo.ARCHITECTURES[name]
    with torch.no_grad():
        expected = architecture.build()(*architecture.inputs(batch, sequence=sequence))
    expected = expected if isinstance(expected, tuple) else (expected,)
    for want, got in zip(expected, _run(model, zoo.feeds(name, batch, sequence=sequence)), strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-5 * float(want.abs().max()))


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_weights_hide_no_mistake(name: str) -> None:
    module = zoo.ARCHITECTURES[name].build()
    floats: dict[str, torch.Tensor] = dict(module.named_parameters())
    floats |= {path: tensor for path, tensor in module.named_buffers() if "running" in path}
    for path, tensor in floats.items():
        assert tensor.std() > 0, f"{path} is constant"
        assert tensor.abs().max() < 10, f"{path} is out of proportion"


FEATURES = {
    "resnext": {"Conv", "Add"},
    "resnet_batchnorm": {"BatchNormalization"},
    "densenet": {"BatchNormalization", "Concat"},
    "mobilenet_v3": {"HardSwish", "HardSigmoid"},
    "convnext": {"LayerNormalization", "Erf"},
    "unet": {"ConvTranspose", "Concat"},
    "yolo": {"Resize", "MaxPool"},
    "lstm": {"LSTM"},
    "gru_bidirectional": {"GRU"},
    "mixture_of_experts": {"Einsum", "Softmax"},
    "llama": {"Trilu", "Cos"},
    "control_flow": {"If", "Loop"},
}


@pytest.mark.parametrize("name", FEATURES)
def test_exports_contain_the_operators_they_stand_for(name: str) -> None:
    for exporter in zoo.ARCHITECTURES[name].exporters:
        found = {node.op_type for node in zoo.export(name, exporter).graph.node}
        assert FEATURES[name] <= found, f"{exporter} lacks {FEATURES[name] - found}"


def test_hand_built_control_flow_keeps_weights_inside_its_subgraphs() -> None:
    inner = {
        tensor.name for graph in _subgraphs(zoo.export("control_flow", "hand").graph) for tensor in graph.initializer
    }
    assert {"wide.weight", "plain.weight", "up.weight", "down.weight"} <= inner


def _subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
                yield from _subgraphs(attribute.g)


@pytest.mark.parametrize("exporter", zoo.ARCHITECTURES["control_flow"].exporters)
def test_control_flow_takes_both_branches_and_loops(exporter: str) -> None:
    model = zoo.export("control_flow", exporter)
    image = np.abs(zoo.feeds("control_flow", 2)["image"])
    for sign in (1, -1):
        for steps in (0, 3):
            feeds = {"image": sign * image, "steps": np.full((2, 1), steps)}
            np.testing.assert_allclose(_run(model, feeds)[0], _reference("control_flow", feeds), rtol=1e-4, atol=1e-5)


def _reference(name: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    import torch

    with torch.no_grad():
        result: np.ndarray = zoo.ARCHITECTURES[name].build()(*map(torch.from_numpy, feeds.values())).numpy()
    return result


def test_an_export_is_a_copy_of_its_own() -> None:
    first = zoo.export("vgg", "legacy")
    first.graph.ClearField("node")
    assert zoo.export("vgg", "legacy").graph.node


def test_what_cannot_be_exported_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="enable_gqa"):
        zoo.export("gqa_sdpa", "legacy", 17)
    with pytest.raises(ValueError, match="opset 18"):
        zoo.export("vit", "dynamo", 13)
    assert ("gqa_sdpa", "legacy", 17) not in zoo.cases() and ("vit_mha", "legacy", 13) not in zoo.cases(full=True)
