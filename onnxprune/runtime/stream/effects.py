"""What a change of a few constants does to a model's outputs: the model is run from the change on, not from its input.

effects = Effects(model, samples)
effects.of({"conv1.weight": array})          how far the outputs move

reference = Reference.of(dense, feed)        the same of outputs that were made elsewhere
reference.divergence(outputs)
reference.effect(outputs)                    the same at `TEMPERATURE`, as the effects of cuts are compared
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.detection.decode import recognise
from onnxprune.data.detection.distance import detector_distance, read_by
from onnxprune.data.detection.heads import Head, picture_size
from onnxprune.graph.hints import Feeds
from onnxprune.runtime.stream.cursor import Cursor, Program, Values
from onnxprune.runtime.stream.cuts import operands
from onnxprune.runtime.stream.gather import Batches

Array = npt.NDArray[Any]
CLASSES = ("probabilities", "logits")
"""The kinds of outputs that are scores of classes."""

TEMPERATURE = 3.0
"""Of scores of classes where few samples must tell: what a sample is not counts more than at 1 (Hinton et al. 2015).

At 1 few samples make up all of the distance.
"""


class Effects:
    """A model at rest, and what it gives with other constants.

    Args:
        model: The model, which stays as it is.
        samples: A few inputs.

    Attributes:
        dense: The model's outputs, for each batch.
        reference: The same, to compare others with.
    """

    def __init__(self, model: ir.Model, samples: Batches) -> None:
        self._model = model
        self._blocks = samples.blocks(model)
        cursor = Cursor(model, self._blocks, samples.feeds)
        self._states: list[list[Values]] = []
        for _ in self._blocks:
            self._states.append([dict(values) for values in cursor.state])
            cursor.skip()
        names = [str(v.name) for v in model.graph.outputs]
        self.dense: list[Values] = [{name: values[name] for name in names} for values in cursor.state]
        self.reference = Reference.of(self.dense, samples.feeds[0])
        self._readers: dict[str, set[int]] = {}
        for number, block in enumerate(self._blocks):
            for value in (v for node in block.nodes for v in operands(node) if v.const_value is not None):
                self._readers.setdefault(str(value.name), set()).add(number)
        self._programs: dict[tuple[int, frozenset[str]], Program] = {}

    def of(self, changed: Mapping[str, Array]) -> float:
        """Return how far the outputs move with other numbers in some constants, see `Reference.effect`."""
        return self.reference.effect(self.outputs(changed))

    def outputs(self, changed: Mapping[str, Array]) -> list[Values]:
        """Return the model's outputs with other numbers in some constants, for each batch."""
        touched = sorted({number for name in changed for number in self._readers.get(name, ())})
        if not touched:
            return self.dense
        states = self._states[touched[0]]
        for number in range(touched[0], len(self._blocks)):
            opened = frozenset(name for name in changed if number in self._readers.get(name, ()))
            replaced = {name: changed[name] for name in opened}
            program = self._program(number, opened)
            states = [program({**values, **replaced}) for values in states]
        return states

    def share_of(self, changed: Sequence[str]) -> float:
        """Return which share of the blocks is run where these constants change."""
        touched = [number for name in changed for number in self._readers.get(name, ())]
        return 1 - min(touched) / len(self._blocks) if touched else 0.0

    def _program(self, number: int, opened: frozenset[str]) -> Program:
        key = (number, opened)
        if key not in self._programs:
            block = self._blocks[number]
            example = self._states[number][0]
            self._programs[key] = Program(self._model, block.nodes, sorted(block.live), example, sorted(opened))
        return self._programs[key]


@dataclass(frozen=True, eq=False)
class Reference:
    """The dense outputs on some samples, and how others are compared with them.

    Attributes:
        dense: By output name, for each batch.
        head: How boxes and scores are read; None where the model is no detector, or drops boxes itself.
    """

    dense: Sequence[Values]
    head: Head | None = None

    @classmethod
    def of(cls, dense: Sequence[Values], first: Feeds) -> Reference:
        """Return the reference that these outputs of the dense model are, the first of them on the batch `first`."""
        pictures = [np.asarray(array) for array in first.values()]
        head = recognise(picture_size(pictures), [np.asarray(array) for array in dense[0].values()])
        return cls(dense, None if head is None or head.final else head)

    def effect(self, changed: Sequence[Values]) -> float:
        """What a cut does to the outputs, to be compared with what others do: the divergence at `TEMPERATURE`."""
        return float(max(self.divergence(changed, TEMPERATURE), 0.0))

    def divergence(self, changed: Sequence[Values], temperature: float = 1.0) -> float:
        """How far outputs are from the dense ones, added up.

        KL for classes, `detector_distance` for boxes and scores together, relative squared error for others.

        Args:
            changed: The outputs, for each batch.
            temperature: Scores of classes are divided by it.
        """
        names, together, total = list(self.dense[0]), frozenset[int](), 0.0
        sides = [[_joined(side, name) for name in names] for side in (self.dense, changed)]
        if self.head is not None and all(p.shape == q.shape for p, q in zip(*sides, strict=True)):
            together = read_by(self.head)
            total += float(detector_distance(self.head, sides[1], sides[0], np))
        for number, (p, q) in enumerate(zip(*sides, strict=True)):
            if number not in together and p.dtype.kind == "f" and p.shape == q.shape:
                total += _divergence(p, q, temperature)
        return total


def _joined(batches: Sequence[Values], name: str) -> Array:
    """An output of all batches; in float64 where it holds real numbers."""
    joined = np.concatenate([np.atleast_1d(np.asarray(values[name])) for values in batches])
    return joined.astype(np.float64) if joined.dtype.kind == "f" else joined


def _divergence(p: Array, q: Array, temperature: float) -> float:
    kind = kind_of(p)
    if kind == "values":
        return float(np.square(p - q).sum() / max(np.square(p - p.mean(axis=0)).sum(), 1e-30))
    p, q = (log_probabilities(x, kind, temperature) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def kind_of(output: Array) -> str:
    """Say what an output is: ``probabilities`` (rows of which sum to 1), ``logits`` of classes, or ``values``.

    Logits are rows of which few entries stand out, not always the same: their softmax has less than .7 of the entropy
    of a uniform one, and its largest entry changes from sample to sample.
    """
    if output.ndim != 2 or output.shape[1] < 2:
        return "values"
    if (output >= 0).all() and np.allclose(output.sum(axis=1), 1, atol=1e-3):
        return "probabilities"
    log = log_probabilities(output, "logits")
    entropy = float(-(np.exp(log) * log).sum(axis=1).mean()) / np.log(output.shape[1])
    return "logits" if entropy < 0.7 and len(np.unique(output.argmax(axis=1))) > 1 else "values"


def log_probabilities(output: Array, kind: str, temperature: float = 1.0) -> Array:
    """Return log p of rows of probabilities or logits, with their logits divided by a temperature."""
    if kind == "probabilities":
        logs: Array = np.log(np.maximum(output, 1e-12))
        if temperature == 1:
            return logs
        output = logs
    output = output / temperature
    shifted = output - output.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
