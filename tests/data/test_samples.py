"""Which axis of an array counts samples: found from the graph, from the arrays, or told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

import onnxprune
from onnxprune import model_io
from onnxprune.data.batches import Samples, batches, held_back, samples_by_name
from onnxprune.data.calibration import Calibration, read_calibration
from onnxprune.data.fit import fixed_batch, input_specs
from onnxprune.data.readers import Data, open_data
from onnxprune.data.sources import Arrays, split
from onnxprune.errors import DataError, RecipeError
from onnxprune.graph.hints import give_hints, parse_sample_axes
from onnxprune.recipe.training import DataSettings

RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def detector(x: str = "N, 8", state: str = "2, N, 6") -> ir.Model:
    """Frames, a state with the batch on its second axis, and a scalar: the interface of a voice detector."""
    text = f"""<ir_version: 8, opset_import: ["":17]>
    agraph (float[{x}] x, float[{state}] state, int64 rate) => (float[N, 3] y, float[2, N, 6] next)
    <float[8, 6] w = {{{", ".join(["0.1"] * 48)}}}, int64[1] zero = {{0}}, int64[1] one = {{1}}> {{
        h = MatMul(x, w)
        next = Add(state, h)
        first = Slice(next, zero, one, zero)
        flat = Squeeze(first, zero)
        r = Relu(flat)
        y3 = MatMul(r, v)
        scale = Cast<to = 1>(rate)
        y = Mul(y3, scale)
    }}"""
    proto = parser.parse_model(text.replace("int64[1] one", "float[6, 3] v = {" + "0.2," * 17 + "0.2}, int64[1] one"))
    return model_io.load_any(proto)


STATE = {"x": random(20, 8), "state": random(2, 20, 6), "rate": np.array(3, np.int64)}


def test_the_symbol_of_the_batch_says_which_axis_counts_samples() -> None:
    assert [spec.sample_axis for spec in input_specs(detector())] == [0, 1, None]
    assert [spec.sample_axis for spec in input_specs(detector("batch, 8", "time, batch, 6"))] == [0, 1, None]


@pytest.mark.parametrize(
    ("x", "state"),
    [("N, 8", "2, N, 6"), ("1, 8", "2, 1, 6"), (", 8", "2, , 6"), ("N, 8", "2, M, 6")],
    ids=["named", "fixed", "nameless", "two names"],
)
def test_states_are_cut_along_their_own_axis(x: str, state: str) -> None:
    model = detector()
    for value, dims in zip(model.graph.inputs, (x, state), strict=False):
        parts = [part.strip() for part in dims.split(",")]
        value.shape = ir.Shape([int(part) if part.isdigit() else part or None for part in parts])
    feeds = batches(model, STATE, 8)
    sizes = [1] * 20 if x == "1, 8" else [8, 8, 4]
    assert [feed["x"].shape[0] for feed in feeds] == [feed["state"].shape[1] for feed in feeds] == sizes
    assert all(feed["rate"].ndim == 0 for feed in feeds)
    np.testing.assert_array_equal(np.concatenate([feed["state"] for feed in feeds], axis=1), STATE["state"])


def test_a_constant_shape_holds_for_all_samples() -> None:
    text = """<ir_version: 8, opset_import: ["":17]>
    agraph (float[N, 4] x, float[3, 4] anchors) => (float[N, 3] y) { t = Transpose(anchors) y = MatMul(x, t) }"""
    model = model_io.load_any(parser.parse_model(text))
    feeds = batches(model, {"x": random(10, 4), "anchors": random(3, 4)}, 4)
    assert [feed["anchors"].shape for feed in feeds] == [(3, 4)] * 3


def test_arrays_of_other_lengths_are_still_refused() -> None:
    model = detector()
    for wrong in ({"x": random(19, 8)}, {"state": random(2, 19, 6)}, {"label": np.zeros(19, int)}):
        with pytest.raises(DataError, match="different numbers of samples"):
            open_data(model, {**STATE, **wrong})
    with pytest.raises(DataError, match="--sample-axis NAME:AXIS"):
        open_data(model, {**STATE, "state": random(20, 2, 5)})


def test_an_array_that_lacks_the_axis_is_refused_in_words() -> None:
    assert open_data(detector(), {**STATE, "next": random(20)}).source.count == 20  # refused where it is compared
    text = '<ir_version: 8, opset_import: ["":17]> agraph (float x) => (float y) { y = Relu(x) }'
    model = model_io.load_any(parser.parse_model(text))
    model.graph.inputs[0].shape = None
    give_hints(model, sample_axes=parse_sample_axes(["x:1"]))
    with pytest.raises(DataError, match=r"--sample-axis x:1 names an axis that the data lack: their shape is \[12\]"):
        open_data(model, {"x": random(12)})


def test_the_axis_can_be_told() -> None:
    text = '<ir_version: 8, opset_import: ["":17]> agraph (float[a, b] x) => (float[a, b] y) { y = Relu(x) }'
    model = model_io.load_any(parser.parse_model(text))
    give_hints(model, sample_axes=parse_sample_axes(["x:1"]))
    assert open_data(model, {"x": random(3, 12)}).source.count == 12
    assert [f["x"].shape for f in batches(model.clone(), {"x": random(3, 12)}, 5)] == [(3, 5), (3, 5), (3, 2)]


@pytest.mark.parametrize("text", ["x", "x:", ":1", "x:one", "x:-1"])
def test_an_axis_that_is_not_said_clearly_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--sample-axis looks like state:1"):
        parse_sample_axes([text])


def test_an_axis_of_no_input_is_refused() -> None:
    for axes in ({"y": 0}, {"x": 2}):
        with pytest.raises(RecipeError, match="--sample-axis: the (model has no input 'y'|input 'x' has 2 axes)"):
            give_hints(detector(), sample_axes=axes)


def test_names_with_colons_and_inputs_without_an_axis() -> None:
    assert parse_sample_axes(["a:0:2", "rate:none"]) == {"a:0": 2, "rate": None}


def test_a_split_and_a_draw_keep_the_axes() -> None:
    data = open_data(detector(), STATE)
    train, held = split(data.source, 0.25, seed=0)
    assert isinstance(held, Arrays) and isinstance(train, Arrays)
    assert (train.count, held.count) == (15, 5) and held.inputs[1].shape == (2, 5, 6)
    drawn = read_calibration(STATE, detector(), limit=7)
    assert isinstance(drawn.inputs, Samples) and drawn.inputs["state"].shape == (2, 7, 6)
    assert samples_by_name(detector(), drawn.inputs).count == 7


def test_what_is_held_back_is_spread_evenly_and_leaves_the_rest() -> None:
    given = {"x": np.arange(20 * 8).reshape(20, 8).astype(np.float32), "state": random(2, 20, 6), "rate": np.array(16)}
    used, held = held_back(detector(), given, 8)
    assert (used.count, held.count) == (18, 2)
    assert (held["x"][:, 0] // 8).tolist() == [5, 15]
    assert used["state"].shape == (2, 18, 6) and used["rate"].shape == ()


def test_whole_batches_are_held_back_where_a_model_fixes_their_size() -> None:
    model = detector("4, 8", "2, 4, 6")
    used, held = held_back(model, {"x": random(20, 8), "state": random(2, 20, 6), "rate": np.array(16)}, 8)
    assert (used.count, held.count) == (16, 4)
    with pytest.raises(DataError, match="give at least 12"):
        held_back(model, {"x": random(8, 8), "state": random(2, 8, 6), "rate": np.array(16)}, 8)


def test_labels_are_held_back_with_their_samples() -> None:
    given = {"x": np.arange(20 * 8).reshape(20, 8).astype(np.float32), "state": random(2, 20, 6), "rate": np.array(16)}
    used, held = Calibration(given, np.arange(20)).held_back(detector(), 4, most=3)
    assert held.labels is not None and held.labels.tolist() == [3, 10, 16]
    assert (held.inputs["x"][:, 0] // 8).tolist() == held.labels.tolist()
    assert used.labels is not None and sorted([*used.labels, *held.labels]) == list(range(20))


def test_the_fixed_batch_is_along_the_axis_of_the_samples() -> None:
    model = detector()
    model.graph.inputs[0].shape = ir.Shape([4, 8])
    model.graph.inputs[1].shape = ir.Shape([2, 4, 6])
    assert fixed_batch(model, (0, 1, None)) == 4


# --- through whole runs


def test_a_stateful_model_is_calibrated_recovered_and_quantised(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **STATE)
    path = tmp_path / "data.npz"
    quick: dict[str, Any] = {"latency": False, "sparsity": 0.5, "calibration": path, "ends": "prune"}
    result = onnxprune.prune(detector(), structure="weights", criterion="wanda", **quick)
    assert result.verdict is not None and result.gone > 0
    assert onnxprune.prune(detector(), quantize="int8", recover="no", **quick).delivery is not None


def test_a_stateful_model_is_retrained_and_measured(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="retraining is not installed")
    np.savez(tmp_path / "train.npz", **STATE, y=random(20, 3), next=random(2, 20, 6))
    settings: dict[str, Any] = {"sparsity": 0.5, "retrain": {"steps": 3, "batch_size": 4}, "ends": "prune"}
    result = onnxprune.prune(detector(), data=tmp_path / "train.npz", latency=False, **settings)
    assert result.verdict is not None and result.verdict.metric is not None
    assert np.isfinite(result.verdict.metric.after)


def test_the_axis_is_told_to_a_run() -> None:
    reading = DataSettings(sample_axis=("x:1",))
    with pytest.raises(DataError):
        onnxprune.prune(detector(), sparsity=0.5, calibration=STATE, reading=reading, latency=False, criterion="wanda")


def test_one_data_set_serves_every_flag() -> None:
    data = open_data(detector(), STATE)
    assert isinstance(data, Data) and open_data(detector(), data) is data
