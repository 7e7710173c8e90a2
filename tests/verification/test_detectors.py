"""A detector's mean average precision, before and after, in ONNX Runtime: with labels, and beside its original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed: pip install 'onnxprune[test]'")

from command_line import run
from PIL import Image

from onnxprune import model_io
from onnxprune.data.readers import open_data
from onnxprune.errors import DataError
from onnxprune.verification.evaluate import evaluate, measured

SIDE, STRIDES = 32, (4, 8)
PLACES = 80


def detector(threshold: float = 0.5) -> ir.Model:
    """Finds bright cells of 4 and 8 pixels: a box of the cell's size wherever the mean is above a threshold."""
    centres, sides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: SIDE // stride, : SIDE // stride]
        centres.append((np.stack([x, y]) * stride + stride / 2).reshape(2, -1))
        sides.append(np.full((2, centres[-1].shape[1]), stride))
    boxes = np.concatenate([np.concatenate(centres, 1), np.concatenate(sides, 1)]).astype(np.float32)[None]
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        yolo (float[N, 3, {SIDE}, {SIDE}] images) => (float[N, 5, {PLACES}] output0)
        <float[1] low = {{{threshold}}}, float[1] gain = {{20}}, int64[3] flat = {{0, 1, -1}}, int64[1] one = {{1}},
         float[1, 3, 1, 1] w = {{0.3333333, 0.3333333, 0.3333333}}, int64[1] first = {{0}},
         int64[2] tail = {{4, {PLACES}}}>
        {{
            grey = Conv(images, w)
            fine = AveragePool<kernel_shape = [4, 4], strides = [4, 4]>(grey)
            coarse = AveragePool<kernel_shape = [8, 8], strides = [8, 8]>(grey)
            a = Reshape(fine, flat)
            b = Reshape(coarse, flat)
            all = Concat<axis = 2>(a, b)
            above = Sub(all, low)
            scaled = Mul(above, gain)
            scores = Sigmoid(scaled)
            shape = Shape(images)
            count = Slice(shape, first, one)
            wide = Concat<axis = 0>(count, tail)
            every = Expand(boxes, wide)
            output0 = Concat<axis = 1>(every, scores)
        }}"""
    model = ir.from_onnx_text(text)
    constant = ir.Value(name="boxes", const_value=ir.tensor(boxes, name="boxes"))
    for node in model.graph:
        if node.op_type == "Expand":
            node.replace_input_with(0, constant)
    model.graph.register_initializer(constant)
    return model


def write(folder: Path, count: int = 6) -> Path:
    """Pictures with one white cell of 8 pixels each, and its label."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number in range(count):
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        x, y = rng.integers(0, SIDE // 8, 2) * 8
        pixels[y : y + 8, x : x + 8] = 255
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        centre = (x + 4) / SIDE, (y + 4) / SIDE
        (folder / "labels" / f"{number}.txt").write_text(f"0 {centre[0]} {centre[1]} 0.25 0.25")
    return folder


def test_labelled_boxes_are_measured_by_mean_average_precision(tmp_path: Path) -> None:
    """Each picture's own cell ties with the four cells of 4 pixels in it: found, but not alone."""
    data = open_data(detector(), str(write(tmp_path / "set")))
    name, value = evaluate(detector(), data)
    assert name == "map" and 0.1 < value < 1
    assert evaluate(detector(), data, "map50")[1] == pytest.approx(value)
    blind = measured(detector(), detector(threshold=2.0), data)
    assert blind.after == 0 and blind.drop == pytest.approx(value)


def test_without_labels_the_originals_own_detections_count(tmp_path: Path) -> None:
    folder = write(tmp_path / "set") / "images"
    pixels = np.stack([np.asarray(Image.open(path), np.float32).transpose(2, 0, 1) / 255 for path in folder.iterdir()])
    data = open_data(detector(), {"images": pixels})
    same = measured(detector(), detector(), data)
    assert (same.name, same.before, same.after) == ("map", 1.0, 1.0)
    assert measured(detector(), detector(threshold=2.0), data).after == 0


def test_the_metric_is_refused_where_there_is_no_detector(tmp_path: Path) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, {SIDE}, {SIDE}] images) => (float[N, 3, {SIDE}, {SIDE}] out) {{ out = Relu(images) }}"""
    model = ir.from_onnx_text(text)
    with pytest.raises(DataError, match="outputs are not understood as boxes"):
        evaluate(model, open_data(model, str(write(tmp_path / "set"))))


def test_compare_takes_a_folder_of_the_yolo_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "set")
    for name, threshold in (("a", 0.5), ("b", 2.0)):
        model_io.save(detector(threshold), tmp_path / f"{name}.onnx")
    assert run("compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--eval-data", tmp_path / "set") == 0
    assert "map (6 samples)" in capsys.readouterr().out
