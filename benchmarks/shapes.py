"""A small data set for detectors: shapes of four kinds on pieces of photographs, as a folder of the YOLO kind.

    write(folder)          ->  images/{train,val}/*.png, labels/{train,val}/*.txt, shapes.yaml and val.json (COCO)

The photographs are the two that scikit-learn ships. Training pictures lie on one, those for validation on the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

KINDS = ("circle", "square", "triangle", "cross")
SIDE = 128
COUNTS = {"train": 4_000, "val": 500}
_OVERSAMPLED = 4  # shapes are drawn larger, then made smaller: smooth edges
_SMALLEST, _LARGEST = 16, 64
_MOST = 5
_PHOTOGRAPHS = {"train": 0, "val": 1}


@dataclass(frozen=True)
class Shape:
    """A shape in a picture: its kind, and its box as left, top, right, bottom in pixels."""

    kind: int
    box: tuple[float, float, float, float]


def pictures(part: str, count: int) -> Iterator[tuple[Image.Image, list[Shape]]]:
    """Draw the pictures of a part, `train` or `val`, always the same ones."""
    from sklearn.datasets import load_sample_images

    photograph = Image.fromarray(load_sample_images().images[_PHOTOGRAPHS[part]])
    for number in range(count):
        rng = np.random.default_rng((_PHOTOGRAPHS[part], number))
        yield _picture(photograph, rng)


def _picture(photograph: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, list[Shape]]:
    side = int(rng.integers(SIDE // 2, 3 * SIDE))
    left, top = (int(rng.integers(0, extent - side)) for extent in photograph.size)
    picture = photograph.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    shapes: list[Shape] = []
    for _ in range(int(rng.integers(1, _MOST + 1))):
        size = float(rng.uniform(_SMALLEST, _LARGEST))
        x, y = rng.uniform(size / 2, SIDE - size / 2, 2)
        kind, angle = int(rng.integers(len(KINDS))), float(rng.uniform(0, 2 * np.pi))
        outline = _outline(kind, angle) * size / 2 + (x, y)
        box = (*outline.min(0), *outline.max(0))
        if all(_overlap(box, other.box) < 0.1 for other in shapes):
            _draw(picture, outline, tuple(int(c) for c in rng.integers(0, 256, 3)), float(rng.uniform(0.8, 1.0)))
            shapes.append(Shape(kind, tuple(float(side) for side in box)))  # type: ignore[arg-type]
    return picture, shapes


def _outline(kind: int, angle: float) -> npt.NDArray[np.float64]:
    """The corners of a shape of radius 1, turned."""
    if KINDS[kind] == "cross":
        arm = 0.3
        corners = np.array([(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)], np.float64)
        corners = np.concatenate([corners, -corners])
    else:
        count = {"circle": 48, "square": 4, "triangle": 3}[KINDS[kind]]
        turns = np.arange(count) * 2 * np.pi / count
        corners = np.stack([np.cos(turns), np.sin(turns)], 1)
    cosine, sine = np.cos(angle), np.sin(angle)
    turned: npt.NDArray[np.float64] = corners @ np.array([[cosine, sine], [-sine, cosine]])
    return turned


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """The shared area, relative to the smaller box."""
    sides = [min(a, b) - max(c, d) for a, b, c, d in zip(first[2:], second[2:], first[:2], second[:2], strict=True)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return max(sides[0], 0.0) * max(sides[1], 0.0) / min(areas)


def _draw(picture: Image.Image, outline: npt.NDArray[np.float64], colour: tuple[int, ...], opacity: float) -> None:
    large = Image.new("L", (SIDE * _OVERSAMPLED, SIDE * _OVERSAMPLED))
    corners = [(float(x), float(y)) for x, y in outline * _OVERSAMPLED]
    ImageDraw.Draw(large).polygon(corners, fill=round(255 * opacity))
    picture.paste(Image.new("RGB", picture.size, colour), mask=large.resize(picture.size, Image.Resampling.BOX))


def write(folder: Path) -> Path:
    """Write what is missing of the data set, and return the path of its shapes.yaml."""
    listed = folder / "shapes.yaml"
    if listed.exists():
        return listed
    for part, count in COUNTS.items():
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        records = []
        for number, (picture, shapes) in enumerate(pictures(part, count)):
            picture.save(folder / "images" / part / f"{number:05}.png")
            lines = [f"{shape.kind} " + " ".join(f"{v / SIDE:.6f}" for v in _centred(shape.box)) for shape in shapes]
            (folder / "labels" / part / f"{number:05}.txt").write_text("\n".join(lines))
            records.append((f"{number:05}.png", shapes))
        (folder / f"{part}.json").write_text(json.dumps(_coco(records, part)))
    names = "\n".join(f"  {number}: {name}" for number, name in enumerate(KINDS))
    listed.write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}\n")
    return listed


def _centred(box: tuple[float, float, float, float]) -> tuple[float, ...]:
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _coco(records: list[tuple[str, list[Shape]]], part: str) -> dict[str, object]:
    images, annotations = [], []
    for number, (name, shapes) in enumerate(records):
        images.append({"id": number, "file_name": f"images/{part}/{name}", "width": SIDE, "height": SIDE})
        for shape in shapes:
            left, top, right, bottom = shape.box
            box = [left, top, right - left, bottom - top]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": shape.kind + 1, "bbox": box,
                                "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(KINDS)]
    return {"images": images, "annotations": annotations, "categories": categories}
