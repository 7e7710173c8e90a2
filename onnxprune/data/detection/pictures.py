"""Pictures with labelled boxes as what a model is fed, and their boxes in the pixels of its input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.data.detection.labels import read_labels
from onnxprune.data.fit import InputSpec
from onnxprune.data.images import ImageFolder, Placement
from onnxprune.errors import DataError
from onnxprune.recipe.training import DataSettings

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class BoxLabels:
    """The labels of pictures, in the order of the samples.

    Attributes:
        boxes: [N, M, 6]: class, left, top, right, bottom in pixels of the model's input, and 1 for a crowd. The class
            is -1 where a picture has fewer boxes.
        ids: The numbers of the classes as their file has them.
    """

    boxes: Array
    ids: tuple[int, ...]

    def rows(self, indices: Array) -> BoxLabels:
        """The labels of those samples."""
        return BoxLabels(self.boxes[indices], self.ids)


def read_pictures(reference: str, spec: InputSpec, settings: DataSettings) -> tuple[ImageFolder, BoxLabels]:
    """Read pictures for an input, and the boxes of each. They are letterboxed unless the settings say otherwise.

    Raises:
        DataError: A file is missing or is not understood, or the input takes no pictures.
    """
    labelled = read_labels(reference, settings.part or "val")
    files = [picture.path for picture in labelled.pictures]
    images = ImageFolder.for_input(files, None, spec, settings, "letterbox")
    most = max(1, *(len(picture.boxes) for picture in labelled.pictures))
    boxes = np.zeros((len(files), most, 6))
    boxes[..., 0] = -1
    for rows, picture in zip(boxes, labelled.pictures, strict=True):
        width, height = _extent(picture.path)
        place = Placement.of(width, height, images.size, images.fit)
        corners = picture.boxes[:, 1:5] * (np.array([width, height] * 2) if picture.shares else 1)
        kinds, crowds = picture.boxes[:, :1], picture.boxes[:, 5:]
        rows[: len(corners)] = np.concatenate([kinds, place.boxes(corners), crowds], 1)
    return images, BoxLabels(boxes, labelled.ids)


def _extent(path: Path) -> tuple[int, int]:
    """Width and height of a picture, from the beginning of its file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("Folders of images need Pillow: pip install 'onnxprune[detect]'.") from error
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"'{path}' cannot be read as an image: {error}.") from error
