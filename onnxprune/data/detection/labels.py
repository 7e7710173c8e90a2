"""Pictures with labelled boxes: COCO's annotations, and folders and lists of the YOLO kind.

    listed = read_labels("instances_val2017.json", "val")     or "coco128.yaml", "dataset/images/val"

A YOLO data set keeps `labels/...txt` beside `images/...`: a line for each box with its class and its centre, width and
height as shares of the picture; a polygon instead of a box is taken as the box around it. Of a list, the part `train`
or `val` is read. COCO's pictures are looked for by their file names beside the annotations, one folder up, and in the
folders that lie there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.data.images import SUFFIXES
from onnxprune.errors import DataError

Array = npt.NDArray[Any]
_NUMBERS_OF_BOX = 5
_LEAST_NUMBERS_OF_POLYGON = 7
_TYPES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Picture:
    """A picture and its boxes.

    Attributes:
        path: The file.
        boxes: [M, 6]: the class, counted from 0; left, top, right, bottom; 1 for a crowd.
        shares: Whether the boxes are shares of the picture's sides, and not pixels.
    """

    path: Path
    boxes: Array
    shares: bool


@dataclass(frozen=True)
class Labelled:
    """Pictures with boxes, and the numbers of their classes as the file has them; none where it does not say."""

    pictures: tuple[Picture, ...]
    ids: tuple[int, ...]


def has_labels(reference: str) -> bool:
    """Whether a reference names pictures with boxes: a list or annotations, or a folder whose pictures have labels."""
    path = Path(reference)
    if path.suffix.lower() in _TYPES:
        return True
    return path.is_dir() and ((path / "images").is_dir() and (path / "labels").is_dir() or _labels_of(path) is not None)


def read_labels(reference: str, part: str) -> Labelled:
    """Read the boxes of all pictures that a reference names.

    Args:
        reference: COCO's .json, a YOLO .yaml, or a folder.
        part: `train` or `val`, of what has both.

    Raises:
        DataError: A file is missing or is not understood.
    """
    path = Path(reference)
    if path.suffix.lower() == ".json":
        return _read_coco(path)
    if path.suffix.lower() in _TYPES:
        return _read_list(path, part)
    folder = path
    if (path / "images").is_dir() and _labels_of(path) is None:
        folder = path / "images" / part if (path / "images" / part).is_dir() else path / "images"
    pictures = tuple(_of_folder(folder))
    if not pictures:
        raise DataError(f"'{folder}' holds no pictures; the data set is empty.")
    most = max((int(p.boxes[:, 0].max()) for p in pictures if len(p.boxes)), default=0)
    return Labelled(pictures, tuple(range(most + 1)))


# --- YOLO


def _labels_of(folder: Path) -> Path | None:
    """The folder of the labels of a folder of pictures: the last `images` of its path replaced by `labels`."""
    parts = list(folder.resolve().parts)
    if "images" not in parts:
        return None
    place = len(parts) - 1 - parts[::-1].index("images")
    labels = Path(*parts[:place], "labels", *parts[place + 1 :])
    return labels if labels.is_dir() else None


def _of_folder(folder: Path) -> Iterator[Picture]:
    labels = _labels_of(folder)
    if labels is None:
        raise DataError(f"'{folder}' has no labels: they have to lie in a folder 'labels' beside 'images'.")
    if not folder.is_dir():
        raise DataError(f"'{folder}' is no folder of pictures.")
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        yield Picture(path, _boxes_of(labels / f"{path.stem}.txt"), shares=True)


def _boxes_of(file: Path) -> Array:
    """The boxes of one file of labels; none where there is no file, which is how a picture without objects is kept."""
    if not file.is_file():
        return np.zeros((0, 6))
    boxes = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{file}' cannot be read as labels: {error}.") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            boxes.append(_box_of(line.split(), f"'{file}', line {number}"))
    return np.array(boxes, np.float64).reshape(-1, 6)


def _box_of(words: Sequence[str], where: str) -> tuple[float, ...]:
    try:
        kind, *numbers = (float(word) for word in words)
    except ValueError:
        raise DataError(f"{where}: a box is a class and four numbers, all apart by spaces.") from None
    if not np.isfinite([kind, *numbers]).all() or kind < 0 or kind != int(kind):
        raise DataError(f"{where}: '{words[0]}' is no class; classes are counted from 0.")
    if len(words) == _NUMBERS_OF_BOX:
        x, y, width, height = numbers
        return kind, x - width / 2, y - height / 2, x + width / 2, y + height / 2, 0.0
    if len(words) >= _LEAST_NUMBERS_OF_POLYGON and len(numbers) % 2 == 0:
        return kind, min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]), 0.0
    raise DataError(f"{where}: {len(words)} numbers are no box (class, centre, width, height) and no polygon.")


def _read_list(path: Path, part: str) -> Labelled:
    content = _yaml(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("names"), (Mapping, list)):
        raise DataError(f"'{path}' is no YOLO data set: it has to say 'train', 'val' and 'names'.")
    folders = content.get(part)
    if folders is None:
        raise DataError(f"'{path}' names no pictures under '{part}'.")
    root = path.parent / str(content.get("path") or ".")
    pictures: list[Picture] = []
    for folder in folders if isinstance(folders, list) else [folders]:
        if Path(str(folder)).suffix == ".txt":
            pictures += _of_text(root / str(folder), root)
        else:
            pictures += _of_folder(root / str(folder))
    if not pictures:
        raise DataError(f"'{path}': '{part}' holds no pictures; the data set is empty.")
    count = len(content["names"])
    wrong = next((p for p in pictures if len(p.boxes) and p.boxes[:, 0].max() >= count), None)
    if wrong is not None:
        raise DataError(f"'{path}' names {count} classes, but the labels of '{wrong.path.name}' have class "
                        f"{int(wrong.boxes[:, 0].max())}.")  # fmt: skip
    return Labelled(tuple(pictures), tuple(range(count)))


def _of_text(path: Path, root: Path) -> Iterator[Picture]:
    """The pictures that a .txt file names, one a line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read as a list of pictures: {error}.") from error
    for line in filter(None, map(str.strip, lines)):
        picture = root / line
        labels = _labels_of(picture.parent)
        if labels is None:
            raise DataError(f"'{picture}' has no labels: they have to lie in a folder 'labels' beside 'images'.")
        yield Picture(picture, _boxes_of(labels / f"{picture.stem}.txt"), shares=True)


def _yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise DataError("YOLO data sets need PyYAML: pip install 'onnxprune[detect]'.") from error
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"'{path}' cannot be read: {str(error).splitlines()[0]}.") from error


# --- COCO


def _read_coco(path: Path) -> Labelled:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read as JSON: {str(error).splitlines()[0]}.") from error
    try:
        images, ids = content["images"], sorted({int(category["id"]) for category in content["categories"]})
        boxes: dict[Any, list[tuple[float, ...]]] = {image["id"]: [] for image in images}
        for annotation in content["annotations"]:
            left, top, width, height = map(float, annotation["bbox"])
            box = (left, top, left + width, top + height, float(annotation.get("iscrowd", 0)))
            boxes[annotation["image_id"]].append((ids.index(int(annotation["category_id"])), *box))
        names = {image["id"]: str(image["file_name"]) for image in images}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"'{path}' holds no annotations of COCO's kind ({type(error).__name__}: {error}): it has to "
                        "have images, annotations with a bbox each, and categories.") from error  # fmt: skip
    if not names:
        raise DataError(f"'{path}' names no pictures; the data set is empty.")
    find = _Finder(path)
    return Labelled(
        tuple(
            Picture(find(name), np.array(boxes[number], np.float64).reshape(-1, 6), shares=False)
            for number, name in names.items()
        ),
        tuple(ids),
    )


class _Finder:
    """Looks for pictures by file name; the folder that held the last one comes first."""

    def __init__(self, annotations: Path) -> None:
        self._of = annotations
        near = (annotations.parent, annotations.resolve().parent.parent)
        self._folders = [*near, *(f for folder in near for f in sorted(folder.iterdir()) if f.is_dir())]

    def __call__(self, name: str) -> Path:
        for i, folder in enumerate(self._folders):
            if (folder / name).is_file():
                self._folders.insert(0, self._folders.pop(i))
                return folder / name
        raise DataError(f"'{self._of}' names the picture '{name}', which lies neither beside it nor in a folder there.")
