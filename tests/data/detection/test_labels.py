"""Box labels of COCO and of YOLO: the same pictures give the same boxes, in the pixels of the model's input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed: pip install 'onnxprune[test]'")
pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'onnxprune[test]'")

from PIL import Image

from onnxprune.data.readers import open_data
from onnxprune.data.sets import open_sets
from onnxprune.errors import DataError
from onnxprune.recipe.training import DataSettings, TrainSettings

SIZE = 64


def model(height: int = SIZE, width: int = SIZE) -> ir.Model:
    """A model that takes pictures; what it makes of them does not matter here."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, {height}, {width}] images) => (float[N, 3, {height}, {width}] out) {{ out = Relu(images) }}"""
    return ir.from_onnx_text(text)


def write(folder: Path) -> Path:
    """Two pictures of 40 x 20 pixels, one with two boxes, in both forms."""
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (40, 20), (255, 0, 0)).save(folder / "images" / part / f"{number}.png")
    (folder / "labels" / "val" / "0.txt").write_text("1 0.5 0.5 0.5 0.5\n0 0 0 0.25 0 0.25 0.5 0 0.5\n")
    (folder / "shapes.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: a, 1: b}\n")
    boxes = [{"id": 1, "image_id": 7, "category_id": 9, "bbox": [10, 5, 20, 10], "iscrowd": 0},
             {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 10, 10]}]  # fmt: skip
    (folder / "annotations").mkdir()
    (folder / "annotations" / "val.json").write_text(json.dumps({
        "images": [{"id": 7, "file_name": "images/val/0.png"}, {"id": 8, "file_name": "images/val/1.png"}],
        "annotations": boxes,
        "categories": [{"id": 9, "name": "b"}, {"id": 4, "name": "a"}],
    }))  # fmt: skip
    return folder


# A picture of 40 x 20 becomes 64 x 32, with 16 rows of grey above it.
WANTED = [[1, 16, 24, 48, 40, 0], [0, 0, 16, 16, 32, 0]]


@pytest.mark.parametrize("reference", ["shapes.yaml", "images/val", "", "annotations/val.json"])
def test_every_form_gives_the_same_boxes(tmp_path: Path, reference: str) -> None:
    data = open_data(model(), str(write(tmp_path) / reference))
    assert data.metric == "map" and data.boxes is not None and data.outputs == ()
    np.testing.assert_allclose(data.boxes.boxes[0], WANTED)
    assert (data.boxes.boxes[1, :, 0] == -1).all()
    assert data.boxes.ids == ((4, 9) if reference.endswith(".json") else (0, 1))
    (batch,) = data.source.epoch(2)
    picture = batch.inputs[0][0]
    assert picture.shape == (3, SIZE, SIZE)
    assert np.allclose(picture[:, 0], 114 / 255) and np.allclose(picture[:, 16:48].mean((1, 2)), [1, 0, 0])


def test_training_reads_the_part_for_training_and_keeps_the_labels_of_what_it_holds_out(tmp_path: Path) -> None:
    data = str(write(tmp_path) / "shapes.yaml")
    sets = open_sets(model(), data, data, TrainSettings(validation=0.5), DataSettings())
    assert sets.train.boxes is None and sets.validation is not None
    assert sets.validation.boxes is not None and (sets.validation.boxes.boxes[..., 0] == -1).all()
    assert sets.evaluation is not None and sets.evaluation.boxes is not None
    assert (sets.evaluation.boxes.boxes[..., 0] >= 0).sum() == 2


@pytest.mark.parametrize(("fit", "box"), [("stretch", [0, 0, 16, 32]), ("crop", [-41, -5, -5, 32])])
def test_boxes_follow_the_way_in_which_pictures_are_fitted_in(tmp_path: Path, fit: str, box: list[float]) -> None:
    data = open_data(model(), str(write(tmp_path) / "images/val"), DataSettings(fit=fit))  # type: ignore[arg-type]
    assert data.boxes is not None
    np.testing.assert_allclose(data.boxes.boxes[0, 1, 1:5], box, atol=1)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("labels/val/0.txt", "1 0.5 0.5", "'{}/labels/val/0.txt', line 1: 3 numbers are no box"),
        ("labels/val/0.txt", "cat 0.5 0.5 1 1", "line 1: a box is a class and four numbers"),
        ("labels/val/0.txt", "0.5 0.5 0.5 1 1", "'0.5' is no class"),
        ("labels/val/0.txt", "5 0.5 0.5 1 1", "names 2 classes, but the labels of '0.png' have class 5"),
        ("shapes.yaml", "names: [a, b]", "names no pictures under 'val'"),
        ("shapes.yaml", "a: [", "cannot be read"),
        ("shapes.yaml", "train: x", "is no YOLO data set"),
        ("annotations/val.json", "{}", "holds no annotations of COCO's kind"),
        ("annotations/val.json", "{", "cannot be read as JSON"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, file: str, content: str, said: str) -> None:
    folder = write(tmp_path)
    (folder / file).write_text(content)
    reference = file if not file.startswith("labels") else "shapes.yaml"
    with pytest.raises(DataError) as error:
        open_data(model(), str(folder / reference))
    assert said.format(folder) in str(error.value)


def test_a_picture_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "images" / "val" / "1.png").unlink()
    with pytest.raises(DataError, match=r"names the picture 'images/val/1\.png', which lies neither"):
        open_data(model(), str(folder / "annotations" / "val.json"))
