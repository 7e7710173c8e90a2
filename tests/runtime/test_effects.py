"""What a change of a detector's outputs counts: where it sees something, boxes by their sides, classes beside them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.data.detection.heads import Head, Part
from onnxprune.runtime.stream.effects import Reference
from onnxprune.selection.sensitivity import OutputError

PLACES = 8 * 8 + 4 * 4 + 2 * 2  # of the grids of 64 pixels
OBJECT, NOTHING = 5, 70


def outputs() -> np.ndarray:
    """Boxes in pixels and scores of 3 classes, [2, 7, places]; an object at one place."""
    centres = [
        (np.stack(np.meshgrid(*[np.arange(64 // stride)] * 2), -1).reshape(-1, 2) + 0.5) * stride
        for stride in (8, 16, 32)
    ]
    sides = np.random.default_rng(0).uniform(10, 50, (2, 2, PLACES))
    boxes = np.concatenate([np.broadcast_to(np.concatenate(centres).T, (2, 2, PLACES)), sides], 1)
    scores = np.full((2, 3, PLACES), 1e-3)
    scores[:, 1, OBJECT] = 0.9
    return np.concatenate([boxes, scores], 1).astype(np.float32)


def reference() -> Reference:
    feeds = {"images": np.zeros((2, 3, 64, 64), np.float32)}
    return Reference.of([{"y": outputs()}], feeds)


def changed(part: slice, place: int, by: float) -> float:
    moved = outputs()
    moved[:, part, place] += np.float32(by)
    return reference().divergence([{"y": moved}])


def test_a_detector_is_recognised_by_its_inputs_and_outputs() -> None:
    assert reference().head == Head((64, 64), Part(0, 0, 4, 1), Part(0, 4, None, 1), strides=(8, 16, 32))
    assert Reference.of([{"y": outputs()}], {"x": np.zeros((2, 9), np.float32)}).head is None


def test_a_class_that_is_lost_counts_as_much_as_a_box_that_is_off() -> None:
    lost = changed(slice(5, 6), OBJECT, -0.8)
    assert lost > 1 and lost > changed(slice(0, 4), OBJECT, 2.0)


def test_boxes_count_where_something_is_seen() -> None:
    assert changed(slice(0, 4), NOTHING, 20.0) < 0.05 * changed(slice(0, 4), OBJECT, 20.0)


def test_equal_outputs_have_no_distance() -> None:
    assert reference().divergence([{"y": outputs()}]) == pytest.approx(0, abs=1e-12)


def detector() -> ir.Model:
    """Gives `outputs()` for all pictures, whatever is on them: the constant ``numbers``."""
    text = f"""<ir_version: 8, opset_import: ["": 13]>
    net (float[N, 3, 64, 64] images) => (float[N, 7, {PLACES}] y, float[N, 3, 64, 64] same) {{
      mean = ReduceMean<axes = [1, 2, 3], keepdims = 0>(images)
      column = Unsqueeze(mean, axes)
      nothing = Mul(column, zero)
      y = Add(numbers, nothing)
      same = Identity(images)
    }}"""
    proto = onnx.parser.parse_model(text)
    constants = {"axes": np.array([1, 2]), "zero": np.zeros(1, np.float32), "numbers": outputs()[:1]}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return ir.from_proto(proto)


def test_a_scan_judges_a_detector_by_its_boxes_and_scores() -> None:
    """A lost class is worse than boxes that are far off where nothing is; by plain squares it would be the reverse."""
    model = detector()
    measure = OutputError(model, {"images": np.random.default_rng(0).random((8, 3, 64, 64), np.float32)}, batch=3)
    lost, far = outputs()[:1], outputs()[:1]
    lost[:, 4:, OBJECT] = 1e-3
    far[:, :4, NOTHING] += 20
    assert np.square(far - outputs()[:1]).sum() > np.square(lost - outputs()[:1]).sum()
    assert measure({"numbers": lost}) > 10 * measure({"numbers": far}) > 0
    assert measure({"numbers": outputs()[:1]}) == pytest.approx(0, abs=1e-9)
