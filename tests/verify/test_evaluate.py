"""Metrics on labelled data, whatever the batch size of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import parser

from onnxprune.data.metrics import hits, same_classes
from onnxprune.data.npz import LabelledData
from onnxprune.errors import DataError
from onnxprune.runtime import make_session
from onnxprune.verify.evaluate import evaluate, predict

LOGITS = np.eye(8, dtype=np.float32)[[0, 1, 2, 3, 4, 5, 6]] * 5 + np.arange(8, dtype=np.float32) / 10


def session(batch: str = "N") -> ort.InferenceSession:
    text = f'<ir_version: 8, opset_import: ["":17]> g (float[{batch}, 8] x) => (float[{batch}, 8] y) {{ y = Relu(x) }}'
    return make_session(parser.parse_model(text))


@pytest.mark.parametrize("batch", ["N", "1", "3", "16"])
def test_accuracy_with_any_batch_size(batch: str) -> None:
    label = np.array([0, 1, 2, 3, 4, 0, 0])
    scores = evaluate(session(batch), LabelledData({"x": LOGITS}, label), batch=2)
    assert scores["accuracy"] == pytest.approx(5 / 7)
    assert scores["top5"] == pytest.approx(5 / 7)


def test_prediction_is_in_the_order_of_the_samples() -> None:
    for batch in ("N", "3"):
        np.testing.assert_array_equal(predict(session(batch), {"x": LOGITS}, batch=2), np.maximum(LOGITS, 0))


def test_hits_and_same_classes() -> None:
    scores = np.array([[3, 2, 1], [1, 2, 3]], np.float16)
    label = np.array([1, 0])
    assert [hits(scores, label, k).mean() for k in (1, 2, 3)] == [0, 0.5, 1]
    assert same_classes(scores, scores).all() and not same_classes(scores, scores[::-1]).any()
    equal = np.zeros((3, 8), np.float32)  # of equal scores the first ones count, so that a dead model is no good one
    assert [hits(equal, np.array([0, 4, 5]), k).sum() for k in (1, 5)] == [1, 2]


def test_targets_give_an_error() -> None:
    data = LabelledData({"x": LOGITS}, LOGITS + 0.5)
    assert evaluate(session(), data)["mse"] == pytest.approx(0.25)


def test_data_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, image=LOGITS, label=np.arange(7))
    data = LabelledData.load(path, session())
    assert data.samples == 7 and evaluate(session(), data)["accuracy"] == 1


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": LOGITS}, "no array 'label'"),
        ({"a": LOGITS, "b": LOGITS, "label": np.arange(7)}, "no array for the model's input 'x'"),
        ({"x": LOGITS, "label": np.arange(6)}, "6 labels, but 'x'"),
        ({"x": LOGITS, "label": np.arange(7) + 5}, "8 classes"),
        ({"x": LOGITS, "label": np.ones((7, 3), np.float32)}, "do not fit"),
        ({"x": LOGITS[:, :5], "label": np.arange(7)}, "ONNX Runtime"),
    ],
)
def test_data_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=words):
        evaluate(session(), LabelledData.load(tmp_path / "data.npz", session()))


def test_files_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        LabelledData.load(tmp_path / "none.npz", session())
    for content in (b"", b"text", b"PK\x03\x04broken"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DataError, match="not an .npz"):
            LabelledData.load(tmp_path / "bad.npz", session())
    with pytest.raises(DataError, match="no output 'z'"):
        predict(session(), {"x": LOGITS}, output="z")
