"""How far a detector's boxes and scores are from those of the model that it imitates, each on a scale of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxprune.data.detection.distance import detector_distance, read_by
from onnxprune.data.detection.heads import Head
from onnxprune.training.likeness import Kind, distance


@dataclass(frozen=True)
class Detector:
    """How a detector's outputs are read, and their names in order."""

    head: Head
    outputs: tuple[str, ...]

    @property
    def read(self) -> frozenset[str]:
        """The names of the outputs with boxes and scores."""
        return frozenset(self.outputs[number] for number in read_by(self.head))


def apart(
    kinds: Mapping[str, Kind],
    mine: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    names: Sequence[str],
    detector: Detector | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return how far the named outputs are from the dense ones, added up; boxes and scores of a detector together.

    Args:
        kinds: What each output is.
        mine, theirs: The outputs by name.
        names: Those that count.
        detector: How boxes and scores are read, where the model is a detector.
        temperature: Of class distributions.
    """
    total, together = torch.zeros(()), frozenset[str]()
    if detector is not None and detector.read <= set(names):
        together = detector.read
        sides = [[side[n] if n in together else total for n in detector.outputs] for side in (mine, theirs)]
        total = total + distance_of_detector(detector.head, *sides)
    for name in (n for n in names if n not in together):
        total = total + distance(kinds[name], mine[name], theirs[name], temperature=temperature)
    return total


def distance_of_detector(head: Head, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Return `detector_distance` of tensors."""
    ours, wanted = ([x.float() if x.is_floating_point() else x for x in outputs] for outputs in (mine, theirs))
    far: Tensor = detector_distance(head, ours, wanted, torch)
    return far
