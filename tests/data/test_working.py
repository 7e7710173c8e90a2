"""Inputs that the user gives take the place of made-up ones, in every command that needs inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.data.readers import open_data
from onnxprune.data.working import give_inputs, give_samples
from onnxprune.errors import DataError
from onnxprune.graph import inference
from onnxprune.pipeline.check import verify as check
from onnxprune.pipeline.inspect import inspect

POINTS = np.random.default_rng(0).standard_normal((6, 300, 3)).astype(np.float32)


def point_cloud() -> ir.Model:
    """The count of points is free by name, but has to be 300."""
    text = """<ir_version: 8, opset_import: ["":17]> g (float[N, points, 3] x) => (float[N, 2] y) {
        h = MatMul(x, w1) r = Relu(h) e = MatMul(r, w2) f = Flatten(e) y = MatMul(f, w3) }"""
    proto = parser.parse_model(text)
    rng = np.random.default_rng(1)
    from onnx import numpy_helper

    for name, shape in {"w1": (3, 24), "w2": (24, 4), "w3": (1200, 2)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return model_io.load_any(proto)


@pytest.fixture(autouse=True)
def only_likely_extents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing looks for the extent that fits the last product: these tests are about inputs that the user gives."""
    monkeypatch.setattr(inference, "settled_by_products", lambda *_: {})


def test_without_help_no_inputs_are_found() -> None:
    with pytest.raises(DataError, match="give some by --inputs"):
        runtime.working_inputs(point_cloud())


@pytest.mark.parametrize("give", ["inputs", "calibration", "eval_data"])
def test_inputs_and_samples_are_run_where_made_up_ones_fail(give: str) -> None:
    arrays = {"x": POINTS} if give != "eval_data" else {"x": POINTS, "label": np.zeros(6, int)}
    result = onnxprune.prune(
        point_cloud(),
        structure="channels",
        sparsity=0.5,
        recover="no",
        round_to="none",
        latency=False,
        **{give: arrays},
    )
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-5 and result.gone > 0


def test_given_inputs_come_first_and_whole() -> None:
    model = point_cloud()
    give_inputs(model, {"x": POINTS})
    first, second = runtime.working_inputs(model, count=2)
    assert first["x"].shape == (6, 300, 3) and second["x"].shape == (2, 300, 3)
    np.testing.assert_array_equal(first["x"], POINTS)


def test_they_travel_with_copies_and_are_never_written(tmp_path: Path) -> None:
    model = point_cloud()
    give_inputs(model, {"x": POINTS})
    assert runtime.working_inputs(model.clone())
    model_io.save(model, tmp_path / "m.onnx")
    with pytest.raises(DataError):
        runtime.working_inputs(model_io.load(tmp_path / "m.onnx"))


def test_a_fixed_batch_is_cut() -> None:
    text = '<ir_version: 8, opset_import: ["":17]> g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }'
    model = model_io.load_any(parser.parse_model(text))
    give_inputs(model, {"x": np.arange(18, dtype=np.float32).reshape(6, 3)})
    assert [feeds["x"].shape for feeds in runtime.working_inputs(model, count=2)] == [(2, 3)]


def test_a_thousand_samples_are_not_run_at_once() -> None:
    text = '<ir_version: 8, opset_import: ["":17]> g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }'
    model = model_io.load_any(parser.parse_model(text))
    give_samples(model, open_data(model, {"x": np.zeros((1000, 3), np.float32)}))
    assert max(len(feeds["x"]) for feeds in runtime.working_inputs(model, count=3)) <= 64


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": POINTS, "z": POINTS}, "has no array 'x'"),
        ({"x": POINTS.astype(np.int64)}, "holds int64, and the model takes float32"),
        ({"x": POINTS[..., :2]}, "the model wants"),
        ({"x": POINTS[:0]}, "no samples"),
        ({"x": POINTS[:, :7]}, "does not run the inputs of --inputs"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(DataError, match=words):
        onnxprune.prune(point_cloud(), sparsity=0.5, inputs=arrays)


def test_every_command_takes_them(tmp_path: Path) -> None:
    inputs = tmp_path / "in.npz"
    np.savez(inputs, x=POINTS)
    model_io.save(point_cloud(), tmp_path / "m.onnx")
    result = onnxprune.prune(
        tmp_path / "m.onnx", structure="channels", sparsity=0.5, round_to="none", latency=False, inputs=inputs
    )
    onnxprune.save(result, tmp_path / "p.onnx", record=tmp_path / "r.json")
    checked = check(tmp_path / "m.onnx", tmp_path / "p.onnx", tmp_path / "r.json", inputs=inputs)
    assert checked.removed_vs_masked is not None and checked.removed_vs_masked < 1e-5
    assert inspect(tmp_path / "m.onnx", inputs=inputs).unit_parameters > 0
