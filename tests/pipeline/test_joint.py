"""Units, tiles and residual blocks compete for one target: what goes, what is proved, and what a person is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_models import graph, random

import onnxprune
from onnxprune.errors import RecipeError
from onnxprune.passes.join_tiles import in_tiles
from onnxprune.pipeline.check import verify as check
from onnxprune.pipeline.compete import NO_SAMPLES
from onnxprune.recipe.recipe import make_recipe

MODELS = Path(__file__).resolve().parents[2] / "models"
WIDE = 128
RNG = np.random.default_rng(0)


def network(*, block: float, spare: float = 1.0) -> ir.Model:
    """A residual block, a wide layer, and a head of which each quarter of the outputs reads a quarter of the inputs.

    Args:
        block: How large the contribution of the residual block is.
        spare: How large half of the wide layer's units are.
    """
    wide = random(WIDE, 4 * WIDE) / np.float32(WIDE**0.5)
    wide[:, : 2 * WIDE] *= np.float32(spare)
    head = random(4 * WIDE, 2 * WIDE) / np.float32(WIDE**0.5)
    head[np.arange(4 * WIDE)[:, None] % 4 != np.arange(2 * WIDE) % 4] *= np.float32(1e-3)
    return graph(
        f"a (float[N,64,{WIDE}] x) => (float[N,64,{2 * WIDE}] y) {{ a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2)"
        "s = Add(x, b) c = MatMul(s, up) t = Relu(c) y = MatMul(t, head) }",
        {
            "w1": random(WIDE, WIDE) / np.float32(WIDE**0.5),
            "w2": random(WIDE, WIDE) * np.float32(block / WIDE**0.5),
            "up": wide,
            "head": head,
        },
    )


def inputs(count: int = 24) -> dict[str, Any]:
    """Calibration data."""
    return {"x": RNG.standard_normal((count, 64, WIDE)).astype(np.float32)}


def joint(model: Any, **settings: Any) -> onnxprune.Result:
    """Prune."""
    settings = {"calibration": inputs(), "latency": False, "ends": "prune"} | settings
    return onnxprune.prune(model, structure="joint", **settings)


def test_a_block_that_adds_little_goes_before_units_that_matter() -> None:
    result = joint(network(block=1e-3), sparsity=0.2)
    assert result.blocks == ("s",) and {"w1", "w2"}.isdisjoint(result.model.graph.initializers)
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-5 and not result.verdict.unproved


def test_units_that_are_near_zero_go_before_a_block_that_matters() -> None:
    result = joint(network(block=1.0, spare=1e-3), sparsity=0.3, round_to="none")
    assert not result.blocks and result.kept["up"][1].size < 4 * WIDE
    assert result.verdict is not None and result.verdict.output_change < 0.05


def test_blocks_units_and_tiles_of_one_run_are_proved_by_its_record(tmp_path: Path) -> None:
    ir.save(network(block=1e-3, spare=1e-3), tmp_path / "in.onnx")
    result = joint(tmp_path / "in.onnx", sparsity=0.75, allow_inexact=True)
    assert result.blocks and result.kept and in_tiles(result.model)
    assert result.sparsity == pytest.approx(0.75, abs=0.05)
    onnxprune.save(result, tmp_path / "out.onnx", record=tmp_path / "record.json")
    found = check(tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "record.json")
    assert found.removed_vs_masked is not None and found.removed_vs_masked < 1e-5


def test_the_choice_is_held_against_each_structure_alone_at_the_same_target() -> None:
    result = joint(network(block=1e-3, spare=1.0), target_macs=0.8)
    (note,) = (note for note in result.notes if note.startswith("--structure joint"))
    for structure in ("joint", "blocks", "channels", "tiles"):
        assert f"({structure})" in note or f"{structure} did not get there" in note
    assert "nothing but units" not in note, "a block goes"
    assert f"{result.recipe.structure} was kept" in note
    assert result.target is not None and result.target.reached <= 0.8


@pytest.mark.parametrize("wanted", [0.6, 0.4])
def test_where_units_lose_least_the_joint_choice_is_that_of_units_alone(wanted: float) -> None:
    """Tiles are on offer too, and a share of the parameters would take them: they hold more of these than of work."""
    images = {"image": np.load(MODELS / "digits_train.npz")["image"][:512]}
    settings: dict[str, Any] = {"target_macs": wanted, "calibration": images, "latency": False}
    result, alone = (
        onnxprune.prune(MODELS / "digits_mlp.onnx", structure=structure, **settings)
        for structure in ("joint", "channels")
    )
    (note,) = (note for note in result.notes if note.startswith("--structure joint"))
    assert "nothing but units" in note and "(joint)" not in note and result.recipe.structure == "channels"
    assert len(alone.kept) == len(result.kept) > 0
    for name, axes in alone.kept.items():
        assert all(np.array_equal(indices, result.kept[name][axis]) for axis, indices in axes.items())


def test_int8_competes_with_the_same_in_float() -> None:
    """Rounding to int8 costs more here than what has to go without it."""
    model = network(block=1e-3, spare=0.0)
    result = joint(model, target_macs=0.6, quantize="int8", round_to="none")
    (note,) = (note for note in result.notes if note.startswith("--structure joint"))
    assert "in int8)" in note and result.recipe.quantize == "no"


def test_without_inputs_units_go_alone_and_that_is_said() -> None:
    result = joint(network(block=1e-3), sparsity=0.4, calibration=None)
    assert NO_SAMPLES in result.notes and not result.blocks and not in_tiles(result.model)
    assert result.sparsity == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("setting", [{"allocation": "uniform"}, {"unit_share": 0.3}])
def test_what_joint_decides_is_not_said_twice(setting: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="--structure|--unit-share"):
        make_recipe(structure="joint", sparsity=0.5, **setting)
