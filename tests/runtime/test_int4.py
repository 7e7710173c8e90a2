"""int4: products with constant matrices hold 4 bits a weight, zeros stay, and samples tell how to round."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import merged
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command_line import run as onnxprune_command
from small_models import array, graph, random, set_array

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.data.readers import open_data
from onnxprune.errors import ModelError
from onnxprune.graph.packed import layout_of
from onnxprune.model_io.bodies import nodes_of
from onnxprune.recipe.training import DataSettings
from onnxprune.recovery.rounding import Levels, rounded
from onnxprune.recovery.sparsegpt import inverse_factor
from onnxprune.runtime import quantise
from onnxprune.runtime.int4 import packed_matrices
from onnxprune.verification.evaluate import evaluate

DECODER = Path(__file__).resolve().parents[2] / "models" / "shakespeare_decoder.onnx"
TEXTS = {kind: DECODER.with_name(f"shakespeare_decoder.{kind}.txt") for kind in ("calibration", "held_out")}
READING = {"tokenizer": DECODER.with_name("shakespeare_decoder.tokenizer.json"), "sequence_length": 128}


def product(inputs: int = 70, outputs: int = 40) -> ir.Model:
    """A Gemm whose weight lies turned, with a Relu and a MatMul behind it."""
    weights = {"w": random(outputs, inputs), "b": random(outputs, seed=1), "v": random(outputs, 8, seed=2)}
    text = f"""agraph (float[N,{inputs}] x) => (float[N,8] y)
        {{ h = Gemm<transB=1, alpha=0.5>(x, w, b) r = Relu(h) y = MatMul(r, v) }}"""
    return graph(text, weights)


def numbers_of(model: ir.Model) -> dict[str, np.ndarray]:
    """The numbers of the packed matrices, [inputs, outputs], by their names in the float model."""
    found = {}
    for name, value, layout in packed_matrices(model):
        assert value.const_value is not None
        numbers = layout.numbers(value.const_value.numpy()).reshape(layout.outputs, -1)
        found[name] = numbers[:, : layout.inputs].T
    return found


def test_one_weight_is_held_at_a_time(tmp_path: Path) -> None:
    """Twelve weights that lie in a file beside the model; the kernel takes a copy or two of one."""
    side, count = 256, 12
    text = "".join(f"h{i + 1} = MatMul(h{i}, w{i}) " for i in range(count))
    weights = {f"w{i}": random(side, side, seed=i) for i in range(count)}
    model = graph(f"agraph (float[N,{side}] h0) => (float[N,{side}] h{count}) {{ {text} }}", weights)
    model_io.save(model, tmp_path / "model.onnx", external=True)
    on_disk = model_io.load(tmp_path / "model.onnx")
    tracemalloc.start()
    found = quantise.quantise(on_disk, "int4").model
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(list(packed_matrices(found))) == count
    packed = count * side * side * 5 // 8  # 4 bits, and a scale for each 32
    assert peak < packed + 6 * side * side * 4 + (1 << 20) < count * side * side * 4


def test_a_matrix_with_leading_axes_of_one_and_one_that_is_read_otherwise() -> None:
    """The first is packed where its product has as many axes as it; the other is packed and stays."""
    weights = {"w": random(1, 64, 40), "v": random(40, 40, seed=1)}
    model = graph(
        """agraph (float[2,3,64] x, int64[3] i) => (float[2,3,40] y)
        { h = MatMul(x, w) k = MatMul(h, v) r = Gather(v, i) y = Add(k, r) }""",
        weights,
    )
    found = quantise.quantise(model, "int4").model
    assert {name for name, _, _ in packed_matrices(found)} == {"w", "v"} and "v" in found.graph.initializers
    feeds = runtime.working_inputs(model)[0] | {"i": np.array([1, 0, 2])}
    a, b = (runtime.run(runtime.make_session(m), feeds)["y"] for m in (model, found))
    assert a.shape == b.shape and np.abs(a - b).max() < 0.2 * np.abs(a).max()


def test_weights_are_rounded_to_the_nearest_level_and_zeros_stay() -> None:
    model = product()
    pruned = array(model, "w")
    pruned[::3, 5:40] = 0
    set_array(model, "w", pruned)
    found = quantise.quantise(model, "int4").model
    assert [node.op_type for node in found.graph if "MatMul" in node.op_type] == ["MatMulNBits"] * 2
    numbers = numbers_of(found)
    np.testing.assert_array_equal(numbers["w"][pruned.T == 0], 0)
    for name, weight in (("w", 0.5 * pruned.T), ("v", array(model, "v"))):
        (layout,) = [layout for other, _, layout in packed_matrices(found) if other == name]
        assert layout.scales.const_value is not None
        steps = np.repeat(layout.scales.const_value.numpy().reshape(layout.outputs, -1), layout.block, 1).T
        assert (np.abs(numbers[name] - weight) <= 0.501 * np.abs(steps[: len(weight)])).all()
    feeds = {"x": random(5, 70, seed=3)}
    a, b = (runtime.run(runtime.make_session(m), feeds) for m in (model, found))
    assert 0 < runtime.compare_outputs(a, b).max_rel < 0.2


def test_both_branches_of_a_merged_decoder_read_the_same_matrices() -> None:
    model = merged.decoder()
    ir_model = model_io.load_any(model)
    found = quantise.quantise(ir_model, "int4").model
    assert len(list(packed_matrices(found))) == 13
    assert sum(node.op_type == "MatMulNBits" for node in nodes_of(found.graph)) == 26
    for past in (0, 3):
        a, b = (runtime.run(runtime.make_session(m), merged.feeds(past)) for m in (ir_model, found))
        assert runtime.compare_outputs(a, b).max_rel < 0.5


def test_columns_to_the_right_make_up_for_rounding() -> None:
    """On inputs that go together the sweep is far nearer than the nearest levels; it keeps to levels and zeros."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 64)) + 0.1 * rng.standard_normal((400, 64))
    weight = rng.standard_normal((10, 64))
    weight[:, 7] = 0
    levels = Levels(np.full((10, 2), 0.5), np.full((10, 2), 8.0), 32, 15)
    gram = x.T @ x / len(x) + 1e-3 * np.eye(64)
    numbers, found = rounded(weight, inverse_factor(gram), levels)
    np.testing.assert_array_equal(numbers, (found - 8.0) * 0.5)
    assert not numbers[:, 7].any() and found.max() <= 15
    nearest = np.clip(np.rint(weight / 0.5), -8, 7) * 0.5
    errors = [np.square((w - weight) @ x.T).sum() for w in (numbers, nearest)]
    assert errors[0] < 0.2 * errors[1]


@pytest.fixture(scope="module")
def by_samples() -> tuple[onnxprune.Result, onnxprune.Result]:
    """The trained decoder with half of its weights zero, in int4: to the nearest level, and rounded by samples."""
    settings = {"sparsity": 0.5, "quantize": "int4", "recover": "no", "latency": False}
    nearest = onnxprune.prune(DECODER, **settings)
    told = {"calibration": TEXTS["calibration"], "calibration_samples": 64, "reading": READING}
    return nearest, onnxprune.prune(DECODER, **settings, **told)


def test_samples_lower_the_perplexity(by_samples: tuple[onnxprune.Result, onnxprune.Result]) -> None:
    nearest, better = (result.model for result in by_samples)
    assert any("rounded by the calibration samples: 4" in note for note in by_samples[1].notes)
    data = open_data(nearest, TEXTS["held_out"], DataSettings(**READING))  # type: ignore[arg-type]
    plain = onnxprune.prune(DECODER, sparsity=0.5, verification=False).model
    float_, first, second = (evaluate(model, data, "perplexity")[1] for model in (plain, nearest, better))
    assert float_ < second < first - 0.2 * (first - float_)
    zeros = [{name: numbers == 0 for name, numbers in numbers_of(model).items()} for model in (nearest, better)]
    pruned = {name: array(plain, name) == 0 for name in zeros[0]}
    for found in zeros:
        assert all(found[name][pruned[name]].all() for name in found)


def test_the_command_line_prunes_quantises_and_the_file_can_be_pruned_again(tmp_path: Path) -> None:
    out, again = tmp_path / "out.onnx", tmp_path / "again.onnx"
    flags = ["--structure", "channels", "--kinds", "neurons", "--sparsity", "0.3", "--quantize", "int4"]
    record = ["--record", tmp_path / "cut.json"]
    assert onnxprune_command(DECODER, "-o", out, *flags, *record) == 0
    assert out.stat().st_size < 0.3 * DECODER.stat().st_size
    assert onnxprune_command("verify", DECODER, out, *record) == 0
    assert onnxprune_command(out, "-o", again, "--structure", "channels", "--kinds", "neurons", "--sparsity", "0.2",
                             "--round-to", "none") == 0  # fmt: skip
    before, after = (model_io.load(path) for path in (out, again))
    widths = [[layout_of(n).inputs for n in m.graph if n.op_type == "MatMulNBits"] for m in (before, after)]  # type: ignore[union-attr]
    assert sum(widths[1]) < sum(widths[0])


def test_a_model_without_products_is_told_of() -> None:
    model = graph("agraph (int64[N] i) => (float[N,16] y) { y = Gather(table, i) }", {"table": random(40, 16)})
    with pytest.raises(ModelError, match="makes none of the 1 weights int4"):
        quantise.quantise(model, "int4")


def test_what_is_packed_already_stays(tmp_path: Path) -> None:
    once = quantise.quantise(product(), "int4").model
    twice = quantise.quantise(once, "int4").model
    model_io.save(twice, tmp_path / "twice.onnx")
    onnx.checker.check_model(tmp_path / "twice.onnx")
    for name, numbers in numbers_of(once).items():
        np.testing.assert_array_equal(numbers_of(twice)[name], numbers)
