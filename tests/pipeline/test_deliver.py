"""Delivery: the model that is written is the pruned one, stored smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import conv_net, graph, random

import onnxprune
from onnxprune import model_io, packing, runtime
from onnxprune.data.readers import open_data
from onnxprune.errors import RecipeError, VerificationError
from onnxprune.pipeline.deliver import compare_forms
from onnxprune.verification.evaluate import evaluate

TRAINED = Path(__file__).resolve().parents[2] / "models" / "digits_resnet.onnx"
QUICK = {"sparsity": 0.9, "latency": False}


def _weights(model: ir.Model) -> dict[str, bytes]:
    return {n: v.const_value.tobytes() for n, v in model.graph.initializers.items() if v.const_value is not None}


@pytest.mark.parametrize("mode", ["auto", "smallest", "gap8", "bitmask"])
def test_packed_models_are_small_and_give_the_same_bits(mode: str, tmp_path: Path) -> None:
    plain = onnxprune.prune(TRAINED, **QUICK)
    packed = onnxprune.prune(TRAINED, pack=mode, **QUICK)
    path = tmp_path / "packed.onnx"
    onnxprune.save(packed, path)
    onnx.checker.check_model(str(path), full_check=True)
    assert packed.verdict is not None and packed.verdict.after.file_bytes == path.stat().st_size
    assert path.stat().st_size < 0.2 * TRAINED.stat().st_size
    again = packing.unpack(model_io.load(path))
    assert _weights(again) == _weights(plain.model)


def test_lossy_values_are_measured_against_the_original() -> None:
    exact = onnxprune.prune(TRAINED, pack="auto", eval_data=TRAINED.with_suffix(".npz"), sparsity=0.5, latency=False)
    lossy = onnxprune.prune(
        TRAINED,
        pack="auto",
        pack_values="codebook16",
        eval_data=TRAINED.with_suffix(".npz"),
        sparsity=0.5,
        latency=False,
    )
    assert exact.verdict is not None and lossy.verdict is not None
    assert lossy.verdict.after.file_bytes < 0.5 * exact.verdict.after.file_bytes
    assert lossy.verdict.output_change != exact.verdict.output_change
    assert lossy.verdict.metric is not None
    data = open_data(lossy.model, TRAINED.with_suffix(".npz"))
    assert (lossy.verdict.metric.name, lossy.verdict.metric.after) == evaluate(lossy.model, data)


def test_sparse_initializers(tmp_path: Path) -> None:
    path = tmp_path / "sparse.onnx"
    result = onnxprune.prune(TRAINED, sparse_initializers=True, **QUICK)
    onnxprune.save(result, path)
    written = onnx.load(path).graph.sparse_initializer
    assert len(written) > 5 and result.verdict is not None
    assert result.verdict.after.file_bytes == path.stat().st_size < 0.4 * TRAINED.stat().st_size
    batch = runtime.working_inputs(result.model, seed=1, count=1)[0]
    expected = runtime.run(runtime.make_session(result.model), batch)
    found = runtime.run(runtime.make_session(path.read_bytes()), batch)
    assert all(np.array_equal(expected[k], found[k]) for k in expected)
    with pytest.raises(onnxprune.ModelError, match="--force"):
        onnxprune.save(result, path)


def test_the_figures_say_what_packing_did() -> None:
    figures = onnxprune.prune(TRAINED, pack="gap8", **QUICK).figures
    assert figures["packing"]["mode"] == "gap8" and figures["packing"]["ratio"] < 0.2
    assert {t["form"] for t in figures["packing"]["tensors"]} >= {"gap8", "dense"}
    assert "packing" not in onnxprune.prune(TRAINED, **QUICK).figures


def test_another_model_is_not_taken_for_a_packed_one() -> None:
    a, b = (
        graph("agraph (float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }", {"w": random(8, 4, seed=s)})
        for s in (1, 2)
    )
    batch = [{"x": random(3, 8)}]
    compare_forms(a, a.clone(), batch, 0.0)
    with pytest.raises(VerificationError, match="differs from the same model unpacked"):
        compare_forms(a, b, batch, 0.0)


def test_forms_of_products_that_overflow_on_some_processors_overflow_alike() -> None:
    """As a message, which nothing makes exact, and as a model."""
    weights = np.where(np.arange(64 * 4).reshape(64, 4) % 5, 127, -1).astype(np.int8)
    plain = graph("g (uint8[N,64] x) => (int32[N,4] y) { y = MatMulInteger(x, w) }", {"w": weights})
    compare_forms(plain, ir.to_proto(plain), [{"x": np.full((2, 64), 255, np.uint8)}], 0.0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pack": "tight"}, "--pack"),
        ({"pack_values": "int8"}, "--pack-values"),
        ({"pack": "auto", "sparse_initializers": True}, "--sparse-initializers"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        onnxprune.prune(conv_net(), **QUICK, **settings)
