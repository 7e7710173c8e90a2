"""Pruning by depth through the pipeline: what goes, what is said of it, and what a record can prove later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.errors import NothingToPrune, RecipeError
from onnxprune.pipeline.check import verify as check
from onnxprune.pipeline.run import prune, save
from onnxprune.recipe.defaults import settled
from onnxprune.recipe.recipe import make_recipe

THREE = """<ir_version: 8, opset_import: ["": 13]>
g (float[N, 6] x) => (float[N, 3] y) {
  a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) s = Add(x, b)
  c = MatMul(s, w3) t = Add(s, c)
  d = MatMul(t, w4) u = Add(t, d)
  y = MatMul(u, w5)
}"""
SHAPES = {"w1": (6, 12), "w2": (12, 6), "w3": (6, 6), "w4": (6, 6), "w5": (6, 3)}
TOTAL = sum(a * b for a, b in SHAPES.values())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(THREE)
    for name, shape in SHAPES.items():
        array = rng.standard_normal(shape).astype(np.float32) * (0.1 if name == "w4" else 1.0)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("remove_dead", [False, True])
def test_blocks_go_and_the_record_proves_it(model: Path, iterations: int, remove_dead: bool, tmp_path: Path) -> None:
    result = prune(
        model, structure="blocks", sparsity=0.31, iterations=iterations, remove_dead=remove_dead, latency=False
    )
    assert sorted(result.blocks) == ["t", "u"]
    assert (result.gone, result.prunable) == (72, TOTAL)
    assert sorted(result.model.graph.initializers) == ["w1", "w2", "w5"]
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-6
    out, record = tmp_path / "out.onnx", tmp_path / "record.json"
    save(result, out, record=record)
    found = check(model, out, record)
    assert found.removed_vs_masked is not None and found.removed_vs_masked < 1e-6
    assert found.identical == 3


def test_less_than_asked_for_is_said(model: Path) -> None:
    result = prune(model, structure="blocks", sparsity=0.2, latency=False)
    assert result.blocks == ("u",)
    assert "nearest below that whole residual blocks allow" in result.notes[0]


def test_what_follows_is_recovered_on_calibration_inputs(model: Path) -> None:
    x = np.random.default_rng(1).standard_normal((128, 6)).astype(np.float32)
    result = prune(
        model, structure="blocks", sparsity=0.31, criterion="block-output", calibration={"x": x}, latency=False
    )
    assert result.recovered is not None
    assert result.recovered["after"] < 1e-3 * result.recovered["before"]


def test_names_keep_blocks(model: Path) -> None:
    result = prune(model, structure="blocks", sparsity=0.5, exclude=("w4",), verification=False)
    assert result.blocks == ("t",)
    with pytest.raises(NothingToPrune, match="by depth"):
        prune(model, structure="blocks", sparsity=0.5, exclude=("w2", "w3", "w4"), verification=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"structure": "blocks", "criterion": "bn-scale"}, "scores whole units, not residual blocks"),
        ({"structure": "channels", "criterion": "block-output"}, "scores residual blocks, not whole units"),
        ({"structure": "blocks", "allocation": "uniform"}, "divides nothing among layers"),
        ({"structure": "blocks", "criterion": "block-influence"}, "give --calibration"),
    ],
)
def test_what_does_not_go_together(model: Path, settings: dict[str, str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        prune(model, sparsity=0.3, **settings)


def test_merging_needs_no_data(model: Path) -> None:
    result = prune(model, structure="channels", sparsity=0.2, recover="merge", round_to="none", latency=False)
    assert result.recovered is not None
    assert result.recovered["before"] is None
    assert [s["layer"] for s in result.recovered["steps"]] == ["w2"]
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-5


@pytest.mark.parametrize("structure", ["blocks", "layers"])
def test_depth_is_chosen_on_calibration_inputs_where_there_are_some(structure: str) -> None:
    recipe = make_recipe(structure=structure, sparsity=0.3)
    assert settled(recipe, calibrated=True).criterion == "block-influence"
    assert settled(recipe, calibrated=False).criterion == "magnitude"
