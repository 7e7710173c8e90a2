"""Other numbers for inputs, where those that the graph suggests do not run.

An index into an axis of one element must be 0 (the batch index of an RoiAlign), a start lies before its end, a count is
at most an extent. The graph often does not tell. So a few numbers are tried: zeros, a ramp, small numbers, numbers that
the graph holds itself, in all integer inputs at once and then in one at a time. Rows of four floats may be boxes, whose
corners have an order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.hints import Feeds

_RAMP = "ramp"
_SMALL: tuple[int | str, ...] = (0, _RAMP, 1, 2, 3, 4, 8, 16, 32, 64, -1)
_MOST_CONSTANTS = 8
_LARGEST_CONSTANT = 1 << 20


@dataclass(frozen=True)
class OtherNumbers:
    """A change of inputs.

    Attributes:
        names: Integer inputs that it changes.
        number: What they hold throughout, or "ramp" for 0, 1, 2, ... along their last axis.
        boxes: Whether rows of four floats become boxes: positive, and no corner before the first.
    """

    names: tuple[str, ...] = ()
    number: int | str = 0
    boxes: bool = False

    def __call__(self, feeds: Feeds) -> Feeds:
        """Return the inputs with other numbers in some."""
        filled = {name: self._filled(array) if name in self.names else array for name, array in feeds.items()}
        return {n: _boxes(a) if self.boxes and _may_be_boxes(a) else a for n, a in filled.items()}

    def _filled(self, array: Any) -> Any:
        if isinstance(self.number, int):
            return np.full_like(array, self.number)
        extent = array.shape[-1] if array.ndim else 1
        return np.broadcast_to(np.arange(extent, dtype=array.dtype), array.shape).copy()


def other_numbers(model: ir.Model, feeds: Feeds) -> Iterator[OtherNumbers]:
    """Changes to try, the likeliest first; none where no input holds integers or rows of four floats."""
    names = tuple(name for name, array in feeds.items() if array.dtype.kind in "iu" and array.itemsize >= 4)
    numbers: tuple[int | str, ...] = tuple(dict.fromkeys((*_SMALL, *_constants(model))))
    for boxes in (False, True) if any(map(_may_be_boxes, feeds.values())) else (False,):
        if boxes:
            yield OtherNumbers(boxes=True)
        for chosen in dict.fromkeys([names, *((name,) for name in names)]):
            for number in numbers if chosen else ():
                yield OtherNumbers(chosen, number, boxes)


def _may_be_boxes(array: Any) -> bool:
    return array.dtype.kind == "f" and array.ndim in (2, 3) and array.shape[-1] == 4


def _boxes(array: Any) -> Any:
    return np.sort(np.abs(array) * array.dtype.type(8), axis=-1)


def _constants(model: ir.Model) -> list[int]:
    """Single integers that the graph computes with."""
    numbers: dict[int, None] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.size == 1 and tensor.dtype.is_integer():
            numbers[int(tensor.numpy().reshape(-1)[0])] = None
    return [number for number in numbers if 0 < number <= _LARGEST_CONSTANT][:_MOST_CONSTANTS]
