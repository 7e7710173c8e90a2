"""How far outputs are from those of the model that is imitated: one loss for each kind of output.

    kind = kind_of_outputs(dense)                     what an output is, from the dense model's numbers
    distance(kind, mine, theirs)                      0 where both are alike

Distillation in a retraining and the alignment of a pruned network both use it.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.runtime.stream.effects import kind_of

Kind = Literal["probabilities", "logits", "embeddings", "values"]

_EMBEDDING = 16  # entries: shorter rows are figures of their own
_SAME_NORM = 0.01
_FLOOR = 1e-8


def kind_of_outputs(output: npt.NDArray[Any]) -> Kind:
    """Say what an output is, from what the dense model gives for a few samples.

    ``probabilities`` and ``logits`` of classes are told as in `runtime.stream.effects.kind_of`, a Softmax in the graph
    or not. ``embeddings`` are rows of 16 or more entries of both signs that all have one norm. Others are ``values``.
    """
    if output.dtype.kind != "f" or output.ndim < 2:
        return "values"
    rows = output.reshape(-1, output.shape[-1]).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    mixed = bool((rows > 0).any() and (rows < 0).any())
    if output.shape[-1] >= _EMBEDDING and mixed and len(rows) > 1 and norms.std() < _SAME_NORM * norms.mean():
        return "embeddings"
    kind = kind_of(output)
    return "probabilities" if kind == "probabilities" else "logits" if kind == "logits" else "values"


def distance(kind: Kind, mine: Tensor, theirs: Tensor, *, temperature: float = 1.0, axis: int | None = None) -> Tensor:
    """How far an output is from the dense model's, the mean over the batch.

    Classes: T^2 KL(softmax(o / T) || softmax(s / T)) (Hinton, Vinyals and Dean 2015, section 2). Embeddings: 1 - cosine
    of the rows. Others: squared differences over the variance of the dense output within the batch, for each part of
    the output by itself, so that a box of hundreds of pixels and a score below 1 weigh alike.

    Args:
        kind: From `kind_of_outputs`.
        mine, theirs: The output and the dense model's, of one shape.
        temperature: T.
        axis: Of the classes; by default 1, or the last of an output of three axes.
    """
    mine, theirs = mine.float(), theirs.float()
    if kind == "embeddings":
        return (1 - F.cosine_similarity(mine, theirs, dim=-1)).mean()
    if kind == "values":
        return scaled_squares(mine, theirs)
    along = axis if axis is not None else (mine.dim() - 1 if mine.dim() == 3 else 1)
    if kind == "probabilities":  # log p is a logit of p
        tiny = torch.finfo(torch.float32).tiny
        mine, theirs = mine.clamp_min(tiny).log(), theirs.clamp_min(tiny).log()
    log_q, log_p = (F.log_softmax(x / temperature, along) for x in (mine, theirs))
    return (log_p.exp() * (log_p - log_q)).sum(along).mean() * temperature**2


def scaled_squares(mine: Tensor, theirs: Tensor) -> Tensor:
    """Mean over the parts of an output of squared difference by variance.

    Parts lie along the last axis of an output of three axes, such as the sides of boxes, and along axis 1 of others.
    The variance of a part counts as at least a hundred-millionth of the mean one.
    """
    squares = (mine - theirs).square()
    if theirs.dim() < 2:
        return squares.mean() / (theirs - theirs.mean()).square().mean().clamp_min(1e-8)
    parts = theirs.dim() - 1 if theirs.dim() == 3 else 1
    others = [i for i in range(theirs.dim()) if i != parts]
    variance = (theirs - theirs.mean(others, keepdim=True)).square().mean(others)
    floor = (_FLOOR * variance.mean()).clamp_min(1e-8)
    return (squares.mean(others) / variance.clamp_min(floor)).mean()
