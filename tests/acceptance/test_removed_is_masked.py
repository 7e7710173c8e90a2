"""Whatever units go, the smaller model computes what the original computes with the weights of those units at zero.

By default every architecture once by each exporter; `-m zoo` adds every opset, the real models of the shared folder
and the full-size models of the onnx wheel, at both shares, exact and inexact.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import oracle
import pytest
import zoo

from onnxprune.structure.analysis import analyse
from onnxprune.structure.masking import zero_units
from onnxprune.structure.rewrite import remove

needs_torch = pytest.mark.skipif(not zoo.HAS_TORCH, reason="the zoo is built with PyTorch, which is not installed")

MANNERS = [(0.3, True), (0.3, False), (0.6, True), (0.6, False)]
MANNER_IDS = [f"{share}-{'exact' if exact else 'inexact'}" for share, exact in MANNERS]


def _assert_same(load: oracle.Load, share: float, exact: bool, seed: int = 0, alive: bool = True) -> None:
    verdict = oracle.check(load, share, seed, exact=exact)
    assert verdict.good, f"pruned and masked model differ by {verdict.difference:.1e} of the largest output"
    if alive and verdict.removed:
        assert verdict.signal > 10 * verdict.tolerance or verdict.signal > 1e-5 > verdict.difference
        assert verdict.removed >= 0.9 * share * verdict.candidates
        assert verdict.parameters < 1


def _cases(full: bool = False) -> dict[str, Any]:
    cases = zoo.cases(full=full)
    return {"argvalues": cases, "ids": ["-".join(map(str, case)) for case in cases]}


@needs_torch
@pytest.mark.parametrize(("name", "exporter", "opset"), **_cases())
def test_every_architecture(name: str, exporter: str, opset: int) -> None:
    """Legacy exports lose 60 % of all units, mixed axes included; dynamo exports 30 % of the exact ones."""
    share, exact = (0.3, True) if exporter == "dynamo" else (0.6, False)
    model = zoo.export(name, exporter, opset)
    _assert_same(lambda: oracle.normalised(model), share, exact)


@needs_torch
@pytest.mark.parametrize("name", ["resnet_basic", "mobilenet_v3", "vit", "gpt"])
def test_half_floats(name: str) -> None:
    model = _half(zoo.export(name, "legacy"))
    verdict = oracle.check(lambda: oracle.normalised(model), 0.3, exact=True)
    assert verdict.tolerance == 1e-2
    assert verdict.good, f"they differ by {verdict.difference:.1e}"


@needs_torch
def test_the_oracle_sees_a_wrong_weight() -> None:
    model = zoo.export("resnet_basic", "legacy")
    pruned, twin = oracle.normalised(model), oracle.normalised(model)
    structure = analyse(pruned)
    removed = oracle.choose(structure, structure.groups[0].atoms, 0.5, seed=0)
    remove(structure, removed)
    zero_units(analyse(twin), removed)
    sizes = [structure.facts.first.sizes, structure.facts.second.sizes]
    assert oracle.compare(twin, pruned, sizes, 0)[0] < 1e-4
    weight = next(v for v in structure.weights if v.const_value is not None)
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[0] = array[-1]
    weight.const_value = ir.Tensor(array, name=weight.name)
    assert oracle.compare(twin, pruned, sizes, 0)[0] > 1e-4


@pytest.mark.zoo
@needs_torch
@pytest.mark.parametrize(("share", "exact"), MANNERS, ids=MANNER_IDS)
@pytest.mark.parametrize(("name", "exporter", "opset"), **_cases(full=True))
def test_every_architecture_at_every_opset(name: str, exporter: str, opset: int, share: float, exact: bool) -> None:
    model = zoo.export(name, exporter, opset)
    for seed in (1, 2):
        _assert_same(lambda: oracle.normalised(model), share, exact, seed, alive=False)


@pytest.mark.zoo
@pytest.mark.skipif(not oracle.shared_zoo(), reason="no folder of real models (ONNXPRUNE_SHARED)")
@pytest.mark.parametrize(("share", "exact"), MANNERS, ids=MANNER_IDS)
@pytest.mark.parametrize("path", oracle.shared_zoo(), ids=lambda path: path.stem)
def test_real_models(path: Path, share: float, exact: bool) -> None:
    for seed in (0, 1, 2):
        _assert_same(lambda: oracle.normalised(path), share, exact, seed, alive=False)


@pytest.mark.zoo
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("weights", ["as they are", "random"])
@pytest.mark.parametrize(("share", "exact"), MANNERS, ids=MANNER_IDS)
@pytest.mark.parametrize("path", oracle.light_models(), ids=lambda path: path.stem)
def test_full_size_models(path: Path, share: float, exact: bool, weights: str) -> None:
    """As they are, their weights are made by ConstantOfShape, all equal; with random ones the outputs tell more."""
    plain = functools.partial(oracle.normalised, path)
    load = plain if weights != "random" else lambda: oracle.with_random_weights(plain())
    _assert_same(load, share, exact, alive=False)


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16 throughout."""
    halves = onnx.ModelProto()
    halves.CopyFrom(model)
    graph = halves.graph
    for i, tensor in enumerate(graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            graph.initializer[i].CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.FLOAT16
            elif attribute.HasField("t") and attribute.t.data_type == onnx.TensorProto.FLOAT:
                array = onnx.numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(array, attribute.t.name))
    return halves
