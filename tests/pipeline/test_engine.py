"""Runs for an engine: what it needs is set, zeros lie only where it uses them, and the result says which those are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_models import array, graph, random

import onnxprune
from onnxprune import model_io
from onnxprune.errors import NothingToPrune, RecipeError
from onnxprune.recipe.recipe import make_recipe
from onnxprune.report.json_schema import PruneOutput
from onnxprune.runtime import in_openvino

SIDE = 128
SAMPLES = {"x": random(32, SIDE)}


def products() -> ir.Model:
    """Two matrix products with sides of 128 and 256, and one with a narrow side."""
    text = (
        f"a (float[N,{SIDE}] x) => (float[N,8] y) {{ h = MatMul (x, up) b = Add (h, bias) r = Relu (b) "
        "d = MatMul (r, down) s = Relu (d) y = MatMul (s, head) }"
    )
    weights = {"up": random(SIDE, 256), "bias": random(256), "down": random(256, SIDE), "head": random(SIDE, 8)}
    return graph(text, weights)


def run(**settings: Any) -> onnxprune.Result:
    return onnxprune.prune(products(), latency=False, **settings)


def zeros(model: ir.Model, name: str) -> float:
    return float((array(model, name) == 0).mean())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"engine": "openvino", "sparsity": 0.8}, ("weights", "int8", "uniform", 0.8)),
        ({"engine": "openvino", "sparsity": 0.8, "quantize": "no"}, ("weights", "no", "uniform", 0.8)),
        ({"engine": "openvino", "sparsity": 0.8, "structure": "block:1x4"}, ("block:1x4", "int8", "uniform", 0.8)),
        ({"engine": "openvino", "structure": "1:4"}, ("1:4", "int8", "auto", 0.75)),
        ({"engine": "openvino", "sparsity": 0.8, "allocation": "lamp"}, ("weights", "int8", "lamp", 0.8)),
        ({"engine": "openvino", "quality": 1.0}, ("weights", "int8", "auto", 0.0)),
        ({"engine": "tensorrt"}, ("2:4", "fp16", "auto", 0.5)),
        ({"engine": "xnnpack", "sparsity": 0.7}, ("weights", "no", "auto", 0.7)),
    ],
)
def test_an_engine_sets_what_was_left_open(settings: dict[str, Any], expected: tuple[object, ...]) -> None:
    recipe = make_recipe(**settings)
    assert (recipe.structure, recipe.quantize, recipe.allocation, recipe.sparsity) == expected
    assert make_recipe(**recipe.model_dump()) == recipe


def test_units_that_go_as_well_leave_sides_that_openvino_takes() -> None:
    assert make_recipe(engine="openvino", structure="channels+weights", sparsity=0.8).round_to == 64


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"engine": "openvino", "sparsity": 0.5, "structure": "channels"}, "about zeros"),
        ({"engine": "openvino", "sparsity": 0.5, "structure": "tiles"}, "without kernels"),
        ({"engine": "openvino", "sparsity": 0.5, "quantize": "fp16"}, "--quantize fp16: OpenVINO"),
        ({"engine": "openvino", "sparsity": 0.5, "pack": "auto"}, "--pack: OpenVINO"),
        ({"engine": "openvino", "sparsity": 0.5, "sparse_initializers": True}, "--sparse-initializers: OpenVINO"),
        ({"engine": "tensorrt", "sparsity": 0.5, "structure": "weights"}, "2:4 or 1:4, not --structure weights"),
        ({"engine": "tensorrt", "quantize": "int8-dynamic"}, "fixed ranges"),
        ({"engine": "xnnpack", "sparsity": 0.66}, "more than 0.667"),
        ({"engine": "xnnpack", "structure": "2:4"}, "more than 0.667"),
        ({"engine": "xnnpack", "sparsity": 0.8, "quantize": "int8"}, "float weights alone"),
        ({"engine": "other", "sparsity": 0.8}, "'openvino', 'tensorrt' or 'xnnpack'"),
    ],
)
def test_contradictions_are_refused_in_words(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        make_recipe(**settings)


def test_int8_without_inputs_is_refused_before_any_work() -> None:
    with pytest.raises(RecipeError, match="as --engine openvino wants it, needs inputs"):
        run(engine="openvino", sparsity=0.8)


def test_a_model_without_a_layer_for_the_engine_is_refused_with_the_reasons() -> None:
    with pytest.raises(NothingToPrune, match="--engine xnnpack fits no layer .*not of MatMul"):
        run(engine="xnnpack", sparsity=0.8)


def test_openvino_gets_int8_matrix_products_outputs_first_and_no_other_zeros() -> None:
    result = run(engine="openvino", sparsity=0.8, calibration=SAMPLES, ends="prune")
    assert result.delivery is not None and result.delivery.engine is not None
    use = result.delivery.engine
    assert set(use.used) == {"up_quantized", "down_quantized"} and use.rate in (0.79, 0.8)
    assert "multiples of 64" in use.unused["head_quantized"]
    assert zeros(result.delivery.plain, "head") == 0 and result.sparsity == pytest.approx(0.8, abs=0.01)
    assert array(result.model, "up_quantized").shape == (256, SIDE), "outputs first"
    assert any("DECOMPRESSION_RATE at 0." in note for note in result.notes)
    assert any("none for the other 1: head_quantized" in note for note in result.notes)
    told = {"format": "onnxprune-prune/1", "model": "", "output": None, "recipe": result.recipe.model_dump(mode="json")}
    PruneOutput.model_validate(json.loads(json.dumps({**told, **result.figures})))


def test_tensorrt_gets_two_of_four_in_half_precision() -> None:
    result = run(engine="tensorrt", ends="prune")
    assert result.delivery is not None and result.delivery.engine is not None
    assert set(result.delivery.engine.used) == {"up", "down", "head"}
    assert array(result.model, "up").dtype == np.float16
    assert not (np.count_nonzero(array(result.model, "up").T.reshape(-1, 4), axis=1) > 2).any()


def test_int8_for_tensorrt_is_symmetric_with_float_biases() -> None:
    result = run(engine="tensorrt", quantize="int8", calibration=SAMPLES)
    for node in result.model.graph:
        if node.op_type in {"QuantizeLinear"} or node.op_type in {"DequantizeLinear"}:
            zero = node.inputs[2]
            assert zero is not None and zero.const_value is not None
            assert zero.const_value.dtype == ir.DataType.INT8 and not zero.const_value.numpy().any()
    assert array(result.model, "bias").dtype == np.float32
    assert any("4694" in note for note in result.notes)


def test_without_openvino_a_note_says_that_nothing_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_openvino, "is_installed", lambda: False)
    result = onnxprune.prune(products(), engine="openvino", sparsity=0.8, calibration=SAMPLES)
    assert any("pip install openvino" in note for note in result.notes)


def test_with_openvino_the_model_is_measured_there() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'onnxprune[openvino]'")
    result = onnxprune.prune(products(), engine="openvino", sparsity=0.8, calibration=SAMPLES)
    assert result.delivery is not None and result.delivery.engine is not None
    figure = result.delivery.engine.measured
    assert figure is not None and figure.layers == 3 and figure.difference < 0.05
    assert any(note.startswith("OpenVINO 20") for note in result.notes)


def test_the_record_holds_what_the_engine_uses(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    model_io.save(products(), source)
    result = onnxprune.prune(source, engine="tensorrt", latency=False)
    onnxprune.save(result, tmp_path / "out.onnx", record=tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text())["figures"]["engine"]["engine"] == "tensorrt"


def test_a_file_with_weights_outputs_first_is_verified_against_its_original(tmp_path: Path) -> None:
    source, output, record = (tmp_path / name for name in ("model.onnx", "out.onnx", "record.json"))
    model_io.save(products(), source)
    result = onnxprune.prune(source, engine="openvino", sparsity=0.8, calibration=SAMPLES, latency=False)
    onnxprune.save(result, output, record=record)
    check = onnxprune.verify(source, output, record)
    assert check.removed_vs_masked is not None and check.removed_vs_masked < 1e-4


def test_the_engine_is_asked_once_whole_units_are_gone() -> None:
    result = run(engine="openvino", structure="channels+weights", sparsity=0.8, calibration=SAMPLES)
    assert result.delivery is not None and result.delivery.engine is not None
    assert all(extent % 64 == 0 for name in result.delivery.engine.used for extent in array(result.model, name).shape)
