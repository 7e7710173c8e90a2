"""Metrics on labelled data, whatever their form and whatever the batch size of the model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from onnxprune import model_io, runtime
from onnxprune.data.metrics import METRICS, drop, hits, same_classes
from onnxprune.data.readers import Data, open_data
from onnxprune.errors import DataError, RecipeError
from onnxprune.verification.evaluate import MeasuredMetric, evaluate, measured, start_meter

LOGITS = np.eye(8, dtype=np.float32)[[0, 1, 2, 3, 4, 5, 6]] * 5 + np.arange(8, dtype=np.float32) / 10
LABEL = np.array([0, 1, 2, 3, 4, 0, 0])


def network(batch: str = "N") -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["":17]> g (float[{batch}, 8] x) => (float[{batch}, 8] y) {{ y = Relu(x) }}'
    return model_io.load_any(parser.parse_model(text))


def measure(model: ir.Model, name: str | None = None, **arrays: Any) -> tuple[str, float]:
    return evaluate(model, open_data(model, arrays), name)


@pytest.mark.parametrize("batch", ["N", "1", "3", "16"])
def test_accuracy_with_any_batch_size(batch: str) -> None:
    assert measure(network(batch), x=LOGITS, label=LABEL) == ("accuracy", pytest.approx(5 / 7))
    assert measure(network(batch), "top5", x=LOGITS, label=LABEL)[1] == pytest.approx(5 / 7)


def test_hits_and_same_classes() -> None:
    scores = np.array([[3, 2, 1], [1, 2, 3]], np.float16)
    label = np.array([1, 0])
    assert [hits(scores, label, k).mean() for k in (1, 2, 3)] == [0, 0.5, 1]
    assert same_classes(scores, scores).all() and not same_classes(scores, scores[::-1]).any()
    equal = np.zeros((3, 8), np.float32)  # of equal scores the first ones count, so that a dead model is no good one
    assert [hits(equal, np.array([0, 4, 5]), k).sum() for k in (1, 5)] == [1, 2]


def test_targets_give_an_error() -> None:
    assert measure(network(), x=LOGITS, label=LOGITS + 0.5) == ("mse", pytest.approx(0.25))


def test_data_from_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=LOGITS, label=np.arange(7))
    assert evaluate(network(), open_data(network(), tmp_path / "data.npz")) == ("accuracy", 1)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": LOGITS, "b": LOGITS, "label": np.arange(7)}, "no array 'x'"),
        ({"x": LOGITS, "label": np.arange(6)}, "different numbers of samples: 'label' 6, the inputs 7"),
        ({"x": LOGITS, "label": np.arange(7) + 5}, "classes 0 to 7"),
        ({"x": LOGITS, "label": np.ones((7, 3), np.float32)}, "the model gives"),
        ({"x": LOGITS[:, :5], "label": np.arange(7)}, "the model wants"),
        ({"x": LOGITS, "label": np.full((7, 8), np.nan, np.float32)}, "hold NaN, first in sample 0"),
    ],
)
def test_data_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=words):
        evaluate(network(), open_data(network(), tmp_path / "data.npz"))


# --- forms of data


def seven_batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for i in range(0, 7, 3):
        yield LOGITS[i : i + 3], LABEL[i : i + 3]


@pytest.mark.parametrize("batch", ["N", "2"])
def test_a_users_function_is_measured_on_in_its_own_batches(batch: str) -> None:
    """Its batches of 3 are cut into those of 2 that the model takes."""
    sys.modules.setdefault("test_evaluate", sys.modules[__name__])
    model = network(batch)
    assert evaluate(model, open_data(model, f"{__name__}:seven_batches")) == ("accuracy", pytest.approx(5 / 7))


def test_a_table_is_measured_on(tmp_path: Path) -> None:
    rows = [",".join([*(f"{v:g}" for v in row), str(label)]) for row, label in zip(LOGITS, LABEL, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join([",".join("abcdefgh") + ",kind", *rows]))
    assert evaluate(network(), open_data(network(), tmp_path / "t.csv"))[1] == pytest.approx(5 / 7)


def test_data_without_targets_are_compared_with_the_original() -> None:
    model, other = network(), network()
    other.graph[0].op_type = "LeakyRelu"  # type: ignore[index]
    data = open_data(model, {"x": -LOGITS})
    found = measured(model, other, data)
    assert (found.name, found.before) == ("mse", 0.0) and found.after > 0 and found.drop == found.after
    assert measured(model, other, data, "agreement").before == 1


# --- models that name classes themselves, as scikit-learn's do


def classifier() -> ir.Model:
    """Labels first, probabilities second: what skl2onnx writes."""
    text = """<ir_version: 8, opset_import: ["":17]>
        g (float[N, 3] x) => (int64[N] output_label, float[N, 3] output_probability) {
            output_probability = Softmax<axis = 1>(x)
            output_label = ArgMax<axis = 1, keepdims = 0>(x)
        }"""
    return model_io.load_any(parser.parse_model(text))


def test_a_classifier_that_names_its_classes_gets_its_accuracy() -> None:
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    assert measure(classifier(), x=x, label=np.array([0, 1, 2, 0])) == ("accuracy", 0.75)
    with pytest.raises(DataError, match="needs scores"):
        measure(classifier(), "top5", x=x, label=np.array([0, 1, 2, 0]))
    names = np.array(["cat", "dog", "owl"], object)
    assert hits(names, np.array(["cat", "dog", "cat"])).tolist() == [True, True, False]


def test_class_numbers_for_one_score_are_targets() -> None:
    text = '<ir_version: 8, opset_import: ["":17]> g (float[N, 1] x) => (float[N, 1] y) { y = Sigmoid(x) }'
    model = model_io.load_any(parser.parse_model(text))
    name, value = measure(model, x=np.array([[9.0], [-9.0]], np.float32), label=np.array([1, 0]))
    assert name == "mse" and value < 1e-6


# --- directions


def error(outputs: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...]) -> float:
    return float(np.abs(outputs[0] - targets[0]).mean())


error.higher_is_better = False  # type: ignore[attr-defined]


def test_a_drop_is_how_much_worse_it_got_whatever_the_direction() -> None:
    assert drop(0.9, 0.7, higher_is_better=True) == pytest.approx(0.2)
    assert drop(1.0, 1.5, higher_is_better=False) == pytest.approx(0.5)
    assert MeasuredMetric("x", 1.0, 1.5, 1, higher_is_better=False).drop == pytest.approx(0.5)


def test_every_metric_says_its_direction_and_keeps_it() -> None:
    model, worse = network(), network()
    worse.graph[0].op_type = "Neg"  # type: ignore[index]
    elsewhere = ("scores", "boxes")  # tests/data/test_text.py, test_detectors.py
    for name in [name for name in METRICS if METRICS[name].needs not in elsewhere]:
        target = LOGITS if METRICS[name].needs == "targets" else np.arange(7)
        found = measured(model, worse, open_data(model, {"x": LOGITS, "label": target}), name)
        assert found.drop > 0, name
    data = open_data(model, {"x": LOGITS, "label": LOGITS})
    found = measured(model, worse, data, f"{__name__}:error")
    assert not found.higher_is_better and found.drop > 0


def test_an_unknown_metric_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="--metric: there is no metric 'f1': choose one of accuracy"):
        METRICS.find("f1")


def test_outputs_whose_samples_lie_along_another_axis() -> None:
    """A state [2, N, 3] as target: its samples are cut and joined along axis 1."""
    text = """<ir_version: 8, opset_import: ["":17]> g (float[N, 3] x, float[2, N, 3] s)
              => (float[N, 3] y, float[2, N, 3] t) { y = Relu(x) t = Relu(s) }"""
    model = model_io.load_any(parser.parse_model(text))
    state = np.random.default_rng(0).standard_normal((2, 100, 3)).astype(np.float32)
    arrays = {"x": state[0], "s": state, "t": np.maximum(state, 0)}
    data = open_data(model, arrays)
    assert isinstance(data, Data) and data.source.count == 100 and data.outputs == (1,)
    meter, value = start_meter(model, runtime.make_session(model), data)
    assert (meter.metric.name, value, meter.samples) == ("mse", 0.0, 100)
    assert measure(model, f"{__name__}:second", **arrays)[1] == 0


def second(outputs: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...]) -> float:
    assert outputs[1].shape == targets[0].shape == (2, 100, 3)
    return float(np.abs(outputs[1] - targets[0]).max())
