"""What the outputs of a network are, and whether some inputs show the classes of others.

outputs = Outputs.of(dense, feeds, train, held)
outputs.kinds, outputs.shown
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.hints import Feeds
from onnxprune.runtime.stream.cursor import Program
from onnxprune.runtime.stream.effects import CLASSES
from onnxprune.training.likeness import Kind, kind_of_outputs

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Outputs:
    """The outputs of numbers of a network.

    Attributes:
        kinds: What each is.
        shown: Share of the samples held back whose class, the one of the highest score, is also that of a sample that
            is trained on; the least of all outputs of classes, 1 where there are none.
    """

    kinds: Mapping[str, Kind]
    shown: float

    @classmethod
    def of(cls, dense: ir.Model, feeds: Sequence[Feeds], train: Sequence[int], held: Sequence[int]) -> Outputs:
        """Run the network.

        Args:
            dense: It.
            feeds: Batches of inputs.
            train, held: Numbers of the batches that are trained on and held back.
        """
        names = [str(v.name) for v in dense.graph.outputs]
        program = Program(dense, list(dense.graph), names, feeds[0])
        some = [program(feeds[i]) for i in (train[0], *held)]
        kinds = {name: _kind([values[name] for values in some]) for name in names if some[0][name].dtype.kind == "f"}
        scores = [name for name, kind in kinds.items() if kind in CLASSES]
        if not scores:
            return cls(kinds, 1.0)
        seen: dict[str, set[int]] = {name: set() for name in scores}
        for values in (program(feeds[i]) for i in train):
            for name in scores:
                seen[name].update(values[name].argmax(1).tolist())
        best = {name: np.concatenate([values[name].argmax(1) for values in some[1:]]) for name in scores}
        return cls(kinds, min(float(np.isin(best[name], list(seen[name])).mean()) for name in scores))


def _kind(arrays: Sequence[Array]) -> Kind:
    alike = arrays[0].ndim > 1 and len({array.shape[1:] for array in arrays}) == 1
    return kind_of_outputs(np.concatenate(arrays) if alike else arrays[0])
