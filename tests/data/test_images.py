"""Images of any size are fitted into the model's input, as the field does it for the kind of model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed: pip install 'onnxprune[test]'")

from PIL import Image

from onnxprune.data.images import Placement
from onnxprune.data.readers import open_data
from onnxprune.recipe.training import DataSettings

SIDE = 56


def classifier() -> ir.Model:
    return ir.from_onnx_text(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, {SIDE}, {SIDE}] image) => (float[N, M] scores) {{ scores = Flatten(image) }}""")


def filter_of_pictures() -> ir.Model:
    return ir.from_onnx_text(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, {SIDE}, {SIDE}] image) => (float[N, 3, {SIDE}, {SIDE}] out) {{ out = Relu(image) }}""")


def folder(path: Path, size: tuple[int, int]) -> str:
    """One class with one picture: its left and right quarters are white, its middle is black."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 4] = pixels[:, -(size[0] // 4) :] = 255
    (path / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(path / "a" / "0.png")
    return str(path)


def read(model: ir.Model, data: str, **settings: object) -> np.ndarray:
    (batch,) = open_data(model, data, DataSettings(**settings)).source.epoch(1)  # type: ignore[arg-type]
    return batch.inputs[0][0]


def test_a_classifier_gets_the_middle_of_a_wide_picture(tmp_path: Path) -> None:
    data = folder(tmp_path, (256, 128))
    assert read(classifier(), data).max() == 0  # the white quarters lie outside
    assert read(filter_of_pictures(), data)[:, :, 0].min() == 1  # stretched: all is there
    letterboxed = read(classifier(), data, fit="letterbox")
    assert np.allclose(letterboxed[:, 0], 114 / 255) and letterboxed[:, SIDE // 2, 0].min() == 1


def test_the_crop_is_that_of_the_field() -> None:
    """224 of 256: what torchvision's Resize(256) and CenterCrop(224) leave."""
    place = Placement.of(512, 256, (224, 224), "crop")
    assert (place.size, place.left, place.top) == ((512, 256), -144, -16)
    assert Placement.of(500, 375, (224, 224), "crop").size == (341, 256)


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
def test_a_picture_of_the_size_of_the_input_stays_as_it_is(tmp_path: Path, fit: str) -> None:
    data = folder(tmp_path, (SIDE, SIDE))
    picture = read(classifier(), data, fit=fit)
    np.testing.assert_array_equal(picture[0, 0], np.repeat([1.0, 0.0, 0.0, 1.0], SIDE // 4))


def test_boxes_move_with_their_picture() -> None:
    place = Placement.of(40, 20, (64, 64), "letterbox")
    assert place.boxes(np.array([0.0, 0.0, 40.0, 20.0])).tolist() == [0, 16, 64, 48]
