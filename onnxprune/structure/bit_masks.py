"""Which numbers of many weights stay, one bit for each: masks of a large model take a 32nd of its float32 weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from onnxprune.structure.terms import Bools

Key = TypeVar("Key")
Other = TypeVar("Other")


@dataclass(frozen=True, eq=False)
class _Packed:
    bits: npt.NDArray[np.uint8]
    shape: tuple[int, ...]


class BitMasks(Mapping[Key, Bools], Generic[Key]):
    """Masks by key; each look-up gives a new array.

    Example:
        masks = BitMasks((weight.value, mask_of(weight)) for weight in weights)
    """

    def __init__(self, masks: Iterable[tuple[Key, Bools]]) -> None:
        """Take the masks one after the other, so that only one of them need be there at a time."""
        self._packed = {key: _Packed(np.packbits(mask, axis=None), mask.shape) for key, mask in masks}

    def __getitem__(self, key: Key) -> Bools:
        packed = self._packed[key]
        count = int(np.prod(packed.shape))
        return np.unpackbits(packed.bits, count=count).view(np.bool_).reshape(packed.shape)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def renamed(self, name: Callable[[Key], Other]) -> BitMasks[Other]:
        """Return the same masks under other keys; they share the bits."""
        other: BitMasks[Any] = BitMasks(())
        other._packed = {name(key): packed for key, packed in self._packed.items()}
        return other
