"""What a recovery found layer by layer, kept so that a run that was interrupted need not find it again.

The layers that are fitted together are one part of the journal: their new numbers, and what was tried on each. A run
that goes on gives these to the layers and takes the samples through the network as the first run did, so that all that
follows is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

import onnx_ir as ir

from onnxprune.graph.linear import Linear, tensor_of
from onnxprune.graph.tensors import like
from onnxprune.model_io.journal import Journal


@dataclass(frozen=True)
class Known:
    """The part of a run's journal that is about one recovery.

    Attributes:
        journal: The journal of the run.
        name: Of the recovery, unlike all others of the run.
    """

    journal: Journal = field(default_factory=Journal)
    name: str = ""
    _passes: count[int] = field(default_factory=count)

    def next_pass(self) -> str:
        """The name of the next pass over the network; a run that goes on makes the same passes in the same order."""
        return f"{self.name}, pass {next(self._passes)}"

    def has(self, key: str) -> bool:
        """Whether a part is there."""
        return key in self.journal

    def save(self, key: str, layers: Sequence[Linear], steps: Sequence[Any]) -> None:
        """Keep the numbers of layers as they are now, with what was tried on them, as dataclasses."""
        if self.journal.folder is None:
            return
        arrays = {str(value.name): tensor_of(value).numpy() for value in _touched(layers)}
        self.journal.write(key, arrays, {"steps": [asdict(step) for step in steps]})

    def load(self, key: str, layers: Sequence[Linear]) -> list[dict[str, Any]]:
        """Give layers the numbers that were kept; return what was tried on them."""
        arrays, notes = self.journal.read(key)
        for value in _touched(layers):
            value.const_value = like(tensor_of(value), arrays[str(value.name)])
        return list(notes["steps"])

    def number(self, key: str) -> float | None:
        """A single number that was kept; None where it was not."""
        return float(self.journal.read(key)[1]["number"]) if key in self.journal else None

    def save_number(self, key: str, number: float) -> None:
        """Keep a single number."""
        self.journal.write(key, {}, {"number": number})


def stage_key(name: str, layers: Sequence[Linear]) -> str:
    """The key of layers that are fitted together in one pass."""
    return f"{name}: {', '.join(sorted(layer.name for layer in layers))}"


def _touched(layers: Sequence[Linear]) -> list[ir.Value]:
    """The constants that a fit of layers writes to."""
    shifts = [layer.shift[0] for layer in layers if layer.shift is not None]
    return list(dict.fromkeys([*(layer.weight for layer in layers), *shifts]))
