"""Which numbers of a detector's outputs are boxes and which are scores, told by their shapes and by what they hold.

    heads = find_heads(size, outputs)             all readings that fit, the likeliest first; none for other models

Three kinds are known, and they cover YOLOv5 to v12, YOLOX, SSD and what converters make of them:

- *joined*: one tensor with boxes, perhaps an objectness, and scores of the classes for every place of a pyramid of
  grids, [N, places, columns] (YOLOv5 to v7, YOLOX) or [N, columns, places] (YOLOv8 and later). The number of places has
  to be that of the grids of the picture's size.
- *pair*: boxes [N, places, 4] and scores [N, places, classes] (SSD and its kin).
- *final*: after non-maximum suppression: [N, found, 6], or boxes, scores and classes one by one.

Offsets from anchors that are not in the graph are no boxes, and such a model is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Form = Literal["centres", "corners", "corners, top first", "grid"]

_STRIDES = (4, 8, 16, 32, 64, 128)
_ANCHORS = (1, 2, 3, 4, 6, 9)  # boxes at each place of a grid
_MOST_FOUND = 1_000
_BOX = 4
_SHARES = 2.0  # coordinates below it are shares of the picture's sides
_TRUE_CORNERS = 0.999
_FOLLOWS = 0.5  # the correlation of boxes with their cells
_NOT_BEHIND = 1e-3  # rounding may put a right side before its left one


class _Swaps(Protocol):
    """An array of NumPy or a tensor of PyTorch."""

    @property
    def shape(self) -> Any: ...

    def swapaxes(self, first: int, second: int, /) -> Any: ...


T = TypeVar("T", bound=_Swaps)


@dataclass(frozen=True)
class Part:
    """Some columns of an output.

    Attributes:
        output: The output's number.
        first, last: The columns; None is the end.
        axis: Where columns lie: 1, or 2.
    """

    output: int
    first: int
    last: int | None
    axis: int = 2

    def of(self, outputs: Sequence[T]) -> Any:
        """Return the columns, [N, places, columns], of arrays or tensors."""
        values: Any = outputs[self.output]
        if len(values.shape) == _BOX and values.shape[2] == 1:
            values = values.reshape(values.shape[0], values.shape[1], values.shape[3])
        columns = values if self.axis == 2 else values.swapaxes(1, 2)
        return columns[..., self.first : self.last]


@dataclass(frozen=True)
class Head:
    """How the outputs of a detector are read.

    Attributes:
        size: Height and width of the picture.
        boxes, scores: Where they stand; for `final` the scores are one column.
        objectness: A factor on the scores; None where there is none.
        classes: The column of class numbers, where each box has one class.
        form: What the four numbers of a box are. In a `grid` they are an offset in cells and logarithms of cells.
        shares: Whether they are shares of the picture's sides, and not pixels.
        strides: Of the grids, for the form `grid`.
        background: Whether class 0 stands for nothing.
        numbers: The model's number for each class of the labels; None where they are the same.
        final: Whether overlapping boxes are gone already.
        batched: Whether the outputs have an axis of samples.
    """

    size: tuple[int, int]
    boxes: Part
    scores: Part
    objectness: Part | None = None
    classes: Part | None = None
    form: Form = "centres"
    shares: bool = False
    strides: tuple[int, ...] = ()
    background: bool = False
    numbers: tuple[int, ...] | None = None
    batched: bool = True

    @property
    def final(self) -> bool:
        """Whether overlapping boxes are gone already."""
        return self.classes is not None

    def with_samples(self, outputs: Sequence[Array]) -> tuple[Array, ...]:
        """Return the outputs with an axis of samples, and those of one number a box with an axis of columns."""
        read = {part.output for part in (self.boxes, self.scores, self.classes) if part is not None}
        arrays = list(outputs)
        for i in read:
            array = arrays[i] if self.batched else arrays[i][None]
            arrays[i] = array[..., None] if array.ndim == 2 else array
        return tuple(arrays)


def picture_size(inputs: Sequence[Array]) -> tuple[int, int] | None:
    """Height and width of the pictures that a model is fed; None where no input is one."""
    for array in inputs:
        if array.ndim == _BOX and array.shape[1] in (1, 3):
            return array.shape[2], array.shape[3]
        if array.ndim == _BOX and array.shape[3] in (1, 3):
            return array.shape[1], array.shape[2]
    return None


def find_heads(size: tuple[int, int] | None, outputs: Sequence[Array], ids: Sequence[int] = ()) -> list[Head]:
    """Return the readings that fit what a detector gives for a few pictures, the likeliest first.

    Args:
        size: Height and width of the pictures.
        outputs: Of the model, all of them.
        ids: The numbers of the labels' classes as their file has them; none without labels.
    """
    if size is None:
        return []
    heads = [*_final(size, outputs), *_pairs(size, outputs), *_joined(size, outputs, len(ids))]
    return [named for head in heads for formed in _formed(head, outputs) for named in _named(formed, outputs, ids)]


# --- kinds


def grids(size: tuple[int, int]) -> dict[int, tuple[int, tuple[int, ...]]]:
    """The numbers of places that pyramids of grids have, each with boxes for a cell, and strides."""
    found: dict[int, tuple[int, tuple[int, ...]]] = {}
    for anchors in _ANCHORS:
        for first in range(len(_STRIDES)):
            for last in range(first + 2, len(_STRIDES) + 1):
                strides = _STRIDES[first:last]
                cells = sum(-(-size[0] // s) * -(-size[1] // s) for s in strides)
                found.setdefault(anchors * cells, (anchors, strides))
    return found


def _joined(size: tuple[int, int], outputs: Sequence[Array], classes: int) -> Iterator[Head]:
    known = grids(size)
    for i, array in enumerate(outputs):
        if array.ndim != 3 or array.dtype.kind != "f" or _has_boxes_beside(i, outputs):
            continue
        for axis in (1, 2):
            columns, places = array.shape[axis], array.shape[3 - axis]
            if columns <= _BOX or places not in known:
                continue
            told = {_BOX + classes: False, _BOX + 1 + classes: True} if classes else {}
            objectness = told.get(columns, axis == 2 and columns > _BOX + 1)
            first = _BOX + objectness
            head = Head(
                size,
                Part(i, 0, _BOX, axis),
                Part(i, first, None, axis),
                Part(i, _BOX, first, axis) if objectness else None,
                strides=known[places][1] if known[places][0] == 1 else (),
            )
            rest = Part(i, _BOX, None, axis).of(outputs)
            if _are_shares(rest):
                yield head


def _has_boxes_beside(number: int, outputs: Sequence[Array]) -> bool:
    """Whether another output holds four numbers for each place of this one, so that this one holds scores alone."""
    places = outputs[number].shape[:2]
    return any(i != number and a.shape[:2] == places and a.shape[2:] == (_BOX,) for i, a in enumerate(outputs))


def _pairs(size: tuple[int, int], outputs: Sequence[Array]) -> Iterator[Head]:
    for i, boxes in enumerate(outputs):
        if boxes.dtype.kind != "f" or boxes.ndim not in (3, 4) or boxes.shape[-1] != _BOX:
            continue
        if boxes.ndim == 4 and boxes.shape[2] != 1:
            continue
        for j, scores in enumerate(outputs):
            fits = j != i and scores.dtype.kind == "f" and scores.ndim == 3 and scores.shape[:2] == boxes.shape[:2]
            if fits and _are_shares(scores):
                sums = scores.sum(-1)
                background = scores.shape[-1] > 1 and bool(np.allclose(sums, 1, atol=1e-3))
                yield Head(size, Part(i, 0, _BOX), Part(j, 0, None), background=background)


def _final(size: tuple[int, int], outputs: Sequence[Array]) -> Iterator[Head]:
    for i, array in enumerate(outputs):
        batched, found = array.ndim == 3, array if array.ndim == 3 else array[None]
        if array.dtype.kind != "f" or found.ndim != 3 or not 0 < found.shape[1] <= _MOST_FOUND:
            continue
        if found.shape[2] == _BOX + 2 and _are_shares(found[..., 4]) and _are_numbers(found[..., 5]):
            yield Head(size, Part(i, 0, _BOX), Part(i, 4, 5), None, Part(i, 5, 6), "corners", batched=batched)
        if found.shape[2] == _BOX:
            single = [j for j, a in enumerate(outputs) if j != i and a.shape == array.shape[:-1]]
            scores = [j for j in single if outputs[j].dtype.kind == "f" and _are_shares(outputs[j])]
            classes = [j for j in single if _are_numbers(outputs[j])]
            for j in scores:
                for k in (k for k in classes if k != j):
                    yield Head(size, Part(i, 0, _BOX), Part(j, 0, 1), None, Part(k, 0, 1), "corners", batched=batched)


def _are_shares(array: Array) -> bool:
    return bool(array.size) and bool(((array >= 0) & (array <= 1 + 1e-4)).all())


def _are_numbers(array: Array) -> bool:
    return array.dtype.kind in "iuf" and bool(array.size) and bool(((array == np.round(array)) & (array >= -1)).all())


# --- what the numbers tell


def _formed(head: Head, outputs: Sequence[Array]) -> Iterator[Head]:
    """The head with the forms that its boxes may have."""
    boxes = np.asarray(head.boxes.of(head.with_samples(outputs)), np.float64)
    if not np.isfinite(boxes).all():
        return
    head = replace(head, shares=bool(np.abs(boxes).max(initial=0) <= _SHARES) and min(head.size) > 2 * _SHARES)
    sides = boxes[..., 2:]
    slack = _NOT_BEHIND * np.abs(boxes).max(initial=0)
    ordered = float((sides >= boxes[..., :2] - slack).all(-1).mean())
    if head.final:
        yield replace(head, form="corners")
        yield replace(head, form="corners, top first")
    elif head.strides and not _follows_grid(head, boxes):
        yield replace(head, form="grid", shares=False)
    elif ordered >= _TRUE_CORNERS:
        yield replace(head, form="corners")
        yield replace(head, form="corners, top first")
    elif float((sides >= -slack).all(-1).mean()) >= _TRUE_CORNERS:
        yield replace(head, form="centres")


def cells(head: Head) -> tuple[Array, Array]:
    """The cell (x, y) of each place of the head's grids, [places, 2], and its stride, [places, 1]."""
    parts, strides = [], []
    for stride in head.strides:
        rows, columns = (-(-side // stride) for side in head.size)
        y, x = np.mgrid[:rows, :columns]
        parts.append(np.stack([x, y], -1).reshape(-1, 2))
        strides.append(np.full((rows * columns, 1), stride))
    return np.concatenate(parts), np.concatenate(strides)


def _follows_grid(head: Head, boxes: Array) -> bool:
    """Whether boxes lie where their cells do; offsets within cells do not."""
    cell, stride = cells(head)
    middles, mean = ((cell + 0.5) * stride).astype(np.float64), boxes[..., :2].mean(0)
    for place, box in zip(middles.T, mean.T, strict=True):
        if box.std() > 0 and np.corrcoef(place, box)[0, 1] > _FOLLOWS:
            return True
    return False


def _named(head: Head, outputs: Sequence[Array], ids: Sequence[int]) -> Iterator[Head]:
    """The head with the ways in which its class numbers may belong to those of the labels."""
    if not ids:
        yield head
        return
    count = len(ids)
    ways = [tuple(range(count)), tuple(range(1, count + 1)), tuple(ids)]
    if head.background:
        ways = ways[1:]
    if not head.final:
        columns = head.scores.of(head.with_samples(outputs)).shape[-1]
        ways = [way for way in ways if max(way) < columns]
        if columns == count:
            ways = ways[:1]
    for way in dict.fromkeys(ways):
        yield replace(head, numbers=way)
