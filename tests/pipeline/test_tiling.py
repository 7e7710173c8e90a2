"""Runs with tiles: chosen, zeroed, recovered, rewritten, proved, recorded, and joined again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import array, graph, random

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.errors import NothingToPrune, RecipeError, VerificationError
from onnxprune.passes import JoinTiles
from onnxprune.passes.join_tiles import in_tiles
from onnxprune.pipeline import tiling
from onnxprune.pipeline.check import verify as check
from onnxprune.recipe.recipe import make_recipe

WIDE = 256


def wide() -> Any:
    """Two wide layers whose tiles are worth their nodes, and one that is too small."""
    return graph(
        f"a (float[N,64,{WIDE}] x) => (float[N,64,8] y) {{ h = MatMul(x, up) b = Add(h, bias) r = Relu(b)"
        "d = MatMul(r, down) s = Relu(d) y = MatMul(s, head) }",
        {
            "up": random(WIDE, 4 * WIDE),
            "bias": random(4 * WIDE),
            "down": random(4 * WIDE, WIDE),
            "head": random(WIDE, 8),
        },
    )


SETTINGS: dict[str, Any] = {
    "structure": "tiles",
    "sparsity": 0.75,
    "allocation": "uniform",
    "latency": False,
    "ends": "prune",
}


def test_a_run_writes_tiles_that_compute_what_the_masked_model_computes() -> None:
    result = onnxprune.prune(wide(), **SETTINGS)
    assert result.sparsity == pytest.approx(0.75, abs=0.01)
    assert result.delivery is not None and result.verdict is not None
    assert in_tiles(result.model) and not in_tiles(result.delivery.plain)
    assert result.verdict.removed_vs_masked < 1e-5 and not result.verdict.unproved
    assert set(result.delivery.untiled) == {"head"} and any("head" in note for note in result.notes)
    after, before = result.verdict.after, result.verdict.before
    assert after.macs is not None and before.macs is not None and after.macs < 0.27 * before.macs
    assert after.file_bytes < 0.3 * before.file_bytes
    feeds = runtime.one_sample(result.model, seed=3)
    masked, tiled = (runtime.run(runtime.make_session(m), feeds)["y"] for m in (result.delivery.plain, result.model))
    np.testing.assert_allclose(masked, tiled, rtol=1e-4, atol=1e-2)


def test_tiles_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(tiling.TileLayers):
        def call(self, model: Any) -> Any:
            done = super().call(model)
            for value in model.graph.initializers.values():
                if value.name.endswith("/up") and "/0/" in value.name:
                    value.const_value = type(value.const_value)(value.const_value.numpy() * np.float32(1.5))
            return done

    monkeypatch.setattr(tiling, "TileLayers", Wrong)
    with pytest.raises(VerificationError):
        onnxprune.prune(wide(), **SETTINGS)


def test_a_model_that_is_slower_in_tiles_is_written_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "_ratio", lambda *_: 1.25)
    result = onnxprune.prune(wide(), **{**SETTINGS, "latency": True})
    assert not in_tiles(result.model) and result.delivery is not None
    assert set(result.delivery.untiled) == {"up", "down", "head"}
    assert any("1.25 of the time" in note for note in result.notes)


def test_unpack_gives_the_masked_model_back(tmp_path: Path) -> None:
    result = onnxprune.prune(wide(), **SETTINGS)
    assert result.delivery is not None
    joined = result.model.clone()
    JoinTiles()(joined)
    for name in ("up", "down", "head", "bias"):
        assert array(joined, name).tobytes() == array(result.delivery.plain, name).tobytes()
    assert [n.op_type for n in joined.graph] == [n.op_type for n in result.delivery.plain.graph]


@pytest.mark.parametrize("structure", ["tiles:2", "channels+tiles"])
def test_the_record_tells_what_every_tile_reads_and_a_file_is_checked_by_it(structure: str, tmp_path: Path) -> None:
    original, pruned, record = (tmp_path / name for name in ("a.onnx", "b.onnx", "r.json"))
    model_io.save(wide(), original)
    result = onnxprune.prune(original, **{**SETTINGS, "structure": structure})
    onnxprune.save(result, pruned, record=record)
    assert in_tiles(model_io.load(pruned))
    found = check(original, pruned, record)
    assert not found.unproved
    content = json.loads(record.read_text())
    tiles = content["tiles"]["down"]
    mask = result.masks["down"]
    for tile in tiles:
        assert mask[np.ix_(tile["inputs"], tile["outputs"])].all()
    assert sum(len(t["inputs"]) * len(t["outputs"]) for t in tiles) == mask.sum()
    tiles[0]["inputs"] = tiles[0]["inputs"][1:]
    record.write_text(json.dumps(content))
    with pytest.raises(VerificationError, match="no tile of the record"):
        check(original, pruned, record)


def test_recovery_keeps_the_tiles() -> None:
    feeds = {"x": random(64, 64, WIDE)}
    plain = onnxprune.prune(wide(), **SETTINGS)
    result = onnxprune.prune(wide(), **SETTINGS, calibration=feeds, recover=("least-squares",))
    assert result.delivery is not None
    dense, left, fitted = (
        runtime.run(runtime.make_session(m), feeds)["y"] for m in (wide(), plain.model, result.model)
    )
    assert np.square(fitted - dense).mean() < 0.8 * np.square(left - dense).mean()
    assert not array(result.delivery.plain, "up")[~result.masks["up"]].any()


@pytest.mark.parametrize("method", ["sparsegpt", "alps"])
def test_methods_that_choose_zeros_anew_fit_the_tiles_that_there_are(method: str) -> None:
    result = onnxprune.prune(wide(), **SETTINGS, calibration={"x": random(8, 64, WIDE)}, recover=(method,))
    assert result.delivery is not None and in_tiles(result.model)
    assert not array(result.delivery.plain, "up")[~result.masks["up"]].any()


def test_a_target_of_multiply_adds_is_looked_for() -> None:
    settings = {"structure": "tiles", "allocation": "uniform", "latency": False, "ends": "prune", "target_macs": 0.4}
    result = onnxprune.prune(wide(), **settings)
    assert result.target is not None and result.target.reached == pytest.approx(0.4, abs=0.02)


def test_a_target_of_latency_is_refused_for_zeros_alone() -> None:
    make_recipe(structure="tiles", target_latency=0.5)
    with pytest.raises(RecipeError, match="neither multiply-adds nor latency"):
        make_recipe(structure="block:1x4", target_latency=0.5)


def test_a_model_without_a_layer_to_divide_says_why() -> None:
    model = graph("a (float[N,4] x) => (float[N,8] y) { y = MatMul(x, w) }", {"w": random(4, 8)})
    with pytest.raises(NothingToPrune, match="it reads 4 inputs"):
        onnxprune.prune(model, **SETTINGS)


def test_steps_and_dead_units_go_with_it() -> None:
    result = onnxprune.prune(wide(), **SETTINGS, iterations=3, remove_dead=True)
    assert result.sparsity == pytest.approx(0.75, abs=0.01)
    assert in_tiles(result.model) and result.verdict is not None and result.verdict.removed_vs_masked < 1e-5


@pytest.mark.parametrize(
    "settings",
    [{"quantize": "int8"}, {"quantize": "fp16", "pack": "smallest"}],
    ids=str,
)
def test_it_is_quantised_and_packed(settings: dict[str, Any]) -> None:
    result = onnxprune.prune(wide(), **SETTINGS, **settings, calibration={"x": random(8, 64, WIDE)})
    assert result.verdict is not None and result.delivery is not None
    before = result.delivery.quantised_from or result.verdict
    assert len(result.delivery.untiled) == 1
    assert result.verdict.output_change < before.output_change + 0.05
