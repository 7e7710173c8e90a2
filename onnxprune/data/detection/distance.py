"""How far a detector's boxes and scores are from those of the model that it imitates, each on a scale of its own.

The same formula serves arrays of NumPy (what a cut costs) and tensors of PyTorch (what is trained).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxprune.data.detection.heads import Head

_FAR = 0.1  # of a box's side: from there on, the difference itself counts and not its square
_LEAST = 1e-6
_BOXES = 2.0
_LARGEST_LOGARITHM = 30.0


def detector_distance(head: Head, mine: Sequence[Any], theirs: Sequence[Any], library: Any) -> Any:
    """Return how far boxes and scores are from the teacher's; 0 where they are alike.

    Scores: the Kullback-Leibler divergence of each class at each place, taken as the chance of a coin. Boxes: the
    difference of each number by the side of the teacher's box, Huber's loss of it, by the teacher's best score at that
    place: where it sees nothing, its box says nothing. Both are sums over all places, divided by the sum of the
    teacher's best scores, which is about the number of boxes that it sees; YOLOs scale their losses like this.

    Args:
        head: How the outputs are read.
        mine, theirs: All outputs of both, as the file gives them, in float32 or float64.
        library: `numpy` or `torch`, of which the outputs are.
    """
    sure, scores = (_scores(head, outputs) for outputs in (theirs, mine))
    best = library.amax(sure, -1)
    count = library.clip(best.sum(), 1.0, None)
    boxes = _boxes(head, mine, theirs, library) * best
    return (_coins(scores, sure, library).sum() + _BOXES * boxes.sum()) / count


def read_by(head: Head) -> frozenset[int]:
    """The numbers of the outputs that the distance looks at."""
    return frozenset(part.output for part in (head.boxes, head.scores))


def _scores(head: Head, outputs: Sequence[Any]) -> Any:
    """Scores [N, places, classes], each between 0 and 1, the objectness counted in."""
    scores = head.scores.of(outputs)
    if head.background:
        scores = scores[..., 1:]
    return scores if head.objectness is None else scores * head.objectness.of(outputs)


def _coins(scores: Any, sure: Any, library: Any) -> Any:
    """KL of the coins that fall with the chances `sure` from those with `scores`, for each of them."""
    p, q = (library.clip(x, _LEAST, 1 - _LEAST) for x in (sure, scores))
    return p * library.log(p / q) + (1 - p) * library.log((1 - p) / (1 - q))


def _boxes(head: Head, mine: Sequence[Any], theirs: Sequence[Any], library: Any) -> Any:
    """The difference of the boxes [N, places], relative to the sides of the teacher's."""
    ours, wanted = (head.boxes.of(outputs) for outputs in (mine, theirs))
    first, last = wanted[..., :2], wanted[..., 2:]
    if head.form == "grid":  # an offset in cells, and logarithms of the sides
        sides = library.exp(library.clip(last, None, _LARGEST_LOGARITHM)), library.ones_like(last)
    else:
        sides = (last if head.form == "centres" else last - first,) * 2
    least = _LEAST * float(abs(wanted).max()) + 1e-12
    scaled = (library.clip(abs(side), least, None) for side in sides)
    parts = zip((ours[..., :2], ours[..., 2:]), (first, last), scaled, strict=True)
    return sum(_huber((a - b) / side, library).sum(-1) for a, b, side in parts)


def _huber(differences: Any, library: Any) -> Any:
    """The square of a small difference, the difference itself of a large one (Girshick 2015, Fast R-CNN, eq. 3)."""
    far = abs(differences)
    return library.where(far < _FAR, far**2 / (2 * _FAR), far - _FAR / 2)
