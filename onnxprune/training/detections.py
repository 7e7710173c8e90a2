"""How far a detector's boxes and scores are from those of the model that it imitates, each on a scale of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.data.detection.heads import Head
from onnxprune.training.likeness import Kind, distance

_FAR = 0.1  # of a box's side: from there on, the difference itself counts and not its square
_LEAST = 1e-6
_BOXES = 2.0


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
) -> Tensor:
    """Return how far the named outputs are from the dense ones, added up; boxes and scores of a detector together.

    Args:
        kinds: What each output is.
        mine, theirs: The outputs by name.
        names: Those that count.
        detector: How boxes and scores are read, where the model is a detector.
    """
    total, together = torch.zeros(()), frozenset[str]()
    if detector is not None and detector.read <= set(names):
        together = detector.read
        sides = [[side[n] if n in together else total for n in detector.outputs] for side in (mine, theirs)]
        total = total + detector_distance(detector.head, *sides)
    for name in (n for n in names if n not in together):
        total = total + distance(kinds[name], mine[name], theirs[name])
    return total


def detector_distance(head: Head, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Return how far boxes and scores are from the teacher's; 0 where they are alike.

    Scores: the Kullback-Leibler divergence of each class at each place, taken as the chance of a coin. Boxes: the
    difference of each number by the side of the teacher's box, Huber's loss of it, by the teacher's best score at that
    place: where it sees nothing, its box says nothing. Both are sums over all places, divided by the sum of the
    teacher's best scores, which is about the number of boxes that it sees; YOLOs scale their losses like this.

    Args:
        head: How the outputs are read.
        mine, theirs: All outputs of both, as the file gives them.
    """
    sure, scores = (_scores(head, outputs) for outputs in (theirs, mine))
    best = sure.amax(-1)
    count = best.sum().clamp_min(1.0)
    return (_coins(scores, sure).sum() + _BOXES * (_boxes(head, mine, theirs) * best).sum()) / count


def read_by(head: Head) -> frozenset[int]:
    """The numbers of the outputs that the distance looks at."""
    return frozenset(part.output for part in (head.boxes, head.scores))


def _scores(head: Head, outputs: Sequence[Tensor]) -> Tensor:
    """Scores [N, places, classes], each between 0 and 1, the objectness counted in."""
    scores: Tensor = head.scores.of(outputs).float()
    if head.background:
        scores = scores[..., 1:]
    return scores if head.objectness is None else scores * head.objectness.of(outputs).float()


def _coins(scores: Tensor, sure: Tensor) -> Tensor:
    """KL of the coins that fall with the chances `sure` from those with `scores`, for each of them."""
    p, q = (x.clamp(_LEAST, 1 - _LEAST) for x in (sure, scores))
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def _boxes(head: Head, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """The difference of the boxes [N, places], relative to the sides of the teacher's."""
    ours, wanted = (head.boxes.of(outputs).float() for outputs in (mine, theirs))
    first, last = wanted[..., :2], wanted[..., 2:]
    if head.form == "grid":  # an offset in cells, and logarithms of the sides
        sides = torch.cat([last.clamp_max(30.0).exp(), torch.ones_like(last)], -1)
    else:
        extent = last if head.form == "centres" else last - first
        sides = torch.cat([extent, extent], -1)
    sides = sides.abs().clamp_min(_LEAST * float(wanted.detach().abs().max()) + 1e-12)
    return F.smooth_l1_loss(ours / sides, wanted / sides, reduction="none", beta=_FAR).sum(-1)
