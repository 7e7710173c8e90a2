"""Quantising after pruning: zeros stay zero, the metric is measured again, files get smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import array, conv_net, graph, random, set_array, two_layers

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.errors import DataError, RecipeError, VerificationError
from onnxprune.graph.size import parameters
from onnxprune.runtime import quantise

MODELS = Path(__file__).resolve().parents[2] / "models"
MLP = MODELS / "digits_mlp.onnx"
CALIBRATION = MODELS / "digits_train.npz"


def not_zero(model: ir.Model) -> int:
    """How many elements of weights with two or more axes are not zero."""
    return sum(parameter.nonzero() for parameter in parameters(model) if len(parameter.tensor.shape) > 1)


@pytest.mark.parametrize(("form", "ratio"), [("int8", 0.35), ("int8-dynamic", 0.3), ("fp16", 0.55)])
def test_smaller_and_as_good(form: str, ratio: float) -> None:
    result = onnxprune.prune(
        MLP,
        sparsity=0.5,
        quantize=form,
        calibration=CALIBRATION,
        eval_data=MLP.with_suffix(".npz"),
        latency=False,
        require=["metric_drop<=0.01", f"size<={ratio}"],
    )
    assert result.verdict is not None and result.delivery is not None
    assert result.verdict.after.nonzero_parameters <= 0.52 * result.verdict.after.parameters
    assert "before_quantising" in result.figures
    assert result.delivery.quantised_from is not None
    assert result.delivery.quantised_from.after.file_bytes > 1.7 * result.verdict.after.file_bytes


@pytest.mark.parametrize("name", ["digits_mlp", "digits_resnet", "digits_transformer"])
@pytest.mark.parametrize("form", quantise.FORMS)
def test_zeros_stay_zero(name: str, form: str) -> None:
    plain = onnxprune.prune(MODELS / f"{name}.onnx", sparsity=0.7, verification=False).model
    batches = quantise.calibration_batches(CALIBRATION, plain)[:4]
    found = quantise.quantise(plain, form, batches).model
    before, after = not_zero(plain), not_zero(found)
    assert 0.9 * before < after <= before


def test_zeros_of_an_embedding_are_its_zero_point() -> None:
    """Dynamic quantisation stores lookup tables unsigned, and shared weights once."""
    table, weight = random(40, 16), random(16, 16, seed=1)
    table[::2] = 0
    model = graph(
        "agraph (int64[N] i) => (float[N,16] y) { e = Gather(table, i) v = Identity(w) a = MatMul(e, w) "
        "y = MatMul(a, v) }",
        {"table": table, "w": weight},
    )
    plain = onnxprune.prune(model, sparsity=0.5, verification=False).model
    found = quantise.quantise(plain, "int8-dynamic").model
    (stored,) = (p for p in parameters(found) if p.tensor.shape.numpy() == table.shape)
    assert stored.points is not None and stored.points[0].numpy().any()
    assert 0.4 < stored.nonzero() / table.size <= 0.5
    assert sum(p.tensor.size for p in parameters(found)) == table.size + weight.size


def test_half_precision_leaves_the_scales_of_a_quantised_model_alone() -> None:
    model = model_io.load(MODELS / "digits_resnet.onnx")
    quantised = quantise.quantise(model, "int8", quantise.calibration_batches(CALIBRATION, model)[:2]).model
    half = quantise.quantise(quantised, "fp16").model
    feeds = runtime.working_inputs(model)[0]
    before, after = (runtime.run(runtime.make_session(m), feeds) for m in (quantised, half))
    for name, expected in before.items():
        assert np.abs(after[name] - expected).max() <= 0.05 * np.abs(expected).max()


def test_a_lost_zero_is_found() -> None:
    plain, other = two_layers(), two_layers()
    pruned = array(plain, "w1")
    pruned[:4] = 0
    set_array(plain, "w1", pruned)
    quantise._check_zeros(other, plain)
    with pytest.raises(VerificationError, match="128 zeros"):
        quantise._check_zeros(plain, other)


def test_static_quantisation_follows_the_calibration_inputs() -> None:
    model = two_layers()
    small, large = ([{"x": random(8, 8, seed=s) * scale}] for s, scale in ((1, 0.1), (1, 10.0)))
    feeds = {"x": random(5, 8, seed=2)}
    expected = runtime.run(runtime.make_session(model), feeds)
    gaps = []
    for batches in (small, large):
        found = runtime.run(runtime.make_session(quantise.quantise(model, "int8", batches).model), feeds)
        gaps.append(runtime.compare_outputs(expected, found).max_rel)
    assert gaps[1] < 0.2 < gaps[0]  # ranges seen at a tenth of the inputs clip most of them


def test_a_quantised_and_packed_model_is_smaller_than_either(tmp_path: Path) -> None:
    sizes = {}
    for name, settings in {
        "quantised": {"quantize": "int8-dynamic"},
        "packed": {"pack": "smallest"},
        "both": {"quantize": "int8-dynamic", "pack": "smallest"},
    }.items():
        result = onnxprune.prune(MLP, sparsity=0.8, latency=False, **settings)
        onnxprune.save(result, tmp_path / f"{name}.onnx")
        sizes[name] = (tmp_path / f"{name}.onnx").stat().st_size
        assert result.verdict is not None and result.verdict.after.file_bytes == sizes[name]
    assert sizes["both"] < min(sizes["quantised"], sizes["packed"])
    assert sizes["both"] * 8 < MLP.stat().st_size


def test_int8_needs_something_to_calibrate_on() -> None:
    with pytest.raises(RecipeError, match="--calibration or --eval-data"):
        onnxprune.prune(conv_net(), sparsity=0.5, quantize="int8", latency=False)


def test_calibration_data(tmp_path: Path) -> None:
    model = conv_net()
    path = tmp_path / "c.npz"
    np.savez(path, images=random(20, 3, 12, 12), label=np.zeros(20, int))
    assert [len(b["x"]) for b in quantise.calibration_batches(path, model)] == [8, 8, 4]
    np.savez(path, a=random(4, 3), b=random(4, 3))
    with pytest.raises(DataError, match="'x'"):
        quantise.calibration_batches(path, model)
    np.savez(path, x=random(0, 3, 12, 12))
    with pytest.raises(DataError, match="empty"):
        quantise.calibration_batches(path, model)


def test_the_source_file_stays_protected(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model_io.save(conv_net(), path)
    result = onnxprune.prune(path, sparsity=0.5, quantize="int8-dynamic", latency=False)
    with pytest.raises(onnxprune.ModelError, match="never changed"):
        onnxprune.save(result, path, force=True)


def test_biases_that_nodes_share_are_quantised_for_each() -> None:
    """ONNX Runtime's tool would name its copy "b1", which is a tensor of the model."""
    w = onnx.numpy_helper.from_array(random(4, 4, 3, 3, seed=1), "w")
    b = onnx.numpy_helper.from_array(random(4, seed=2), "b")
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w", "b"], ["b1"], name="first"),
        onnx.helper.make_node("Conv", ["b1", "w", "b"], ["b2"], name="second"),
        onnx.helper.make_node("Conv", ["b2", "w", "b"], ["y"], name="third"),
    ]
    x, y = (onnx.helper.make_tensor_value_info(n, 1, [1, 4, s, s]) for n, s in (("x", 12), ("y", 6)))
    graph = onnx.helper.make_graph(nodes, "shared", [x], [y], [w, b])
    model = model_io.load_any(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))
    batches = [{"x": random(1, 4, 12, 12, seed=s)} for s in range(3)]
    found = quantise.quantise(model, "int8", batches).model
    sessions = [runtime.make_session(m) for m in (model, found)]
    plain, quantised = (runtime.run(session, batches[0]) for session in sessions)
    assert runtime.compare_outputs(plain, quantised).max_rel < 0.1


def test_biases_written_as_rows_are_quantised() -> None:
    """As scikit-learn writes them; ONNX Runtime makes Gemm of MatMul and Add, and its tool fails on a row there."""
    model = graph(
        "agraph (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w) b = Add(a, row) c = Relu(b) d = MatMul(c, v) "
        "y = Add(d, row2) }",
        {"w": random(8, 16), "row": random(1, 16), "v": random(16, 4, seed=1), "row2": random(1, 4)},
    )
    batches = [{"x": random(32, 8, seed=s)} for s in range(3)]
    found = quantise.quantise(model, "int8", batches).model
    plain, quantised = (runtime.run(runtime.make_session(m), batches[0]) for m in (model, found))
    assert runtime.compare_outputs(plain, quantised).max_rel < 0.1
