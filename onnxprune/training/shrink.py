"""Regularisation of what is about to go: weights and units are driven towards zero before they are removed.

A network adapts to a loss that comes slowly better than to one that comes at once. What goes is chosen first; then
one training holds a penalty on that and on nothing else; then it is pruned. The penalties act as proximal steps after
each optimiser step, w <- prox(w), so that a large strength cannot overshoot and Adam's scaling does not cancel them
(as decoupled weight decay, Loshchilov and Hutter 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from onnxprune.plugins import Plugins, Registry, judged
from onnxprune.training.masks import Mask, Masks

Penalty = Callable[[Tensor, float, float], Tensor]
"""(norm of each group, learning rate * strength, share of the training done) -> the factor on each group."""


def _no_factors(answer: object, norms: Tensor, *_: object) -> str:
    fits = isinstance(answer, Tensor) and answer.shape == norms.shape
    return "" if fits else f"is no tensor of the shape of the norms, {list(norms.shape)}"


PENALTIES: Registry[Penalty] = Registry(
    "penalty",
    Plugins("onnxprune.penalties"),
    flag="--shrink",
    of_function=lambda name, function: judged(function, name, _no_factors),
)


@PENALTIES.register("growing-l2")
def growing_l2(norms: Tensor, strength: float, progress: float) -> Tensor:
    """L2 penalty whose strength grows linearly from 0: w <- w / (1 + t s). Source: Wang et al. 2021, section 3.2."""
    return torch.full_like(norms, 1 / (1 + strength * progress))


@PENALTIES.register("group-lasso")
def group_lasso(norms: Tensor, strength: float, progress: float) -> Tensor:
    """Penalty on the norm of each group: w_g <- w_g max(0, 1 - s / |w_g|). Source: Wen et al. 2016, equation 3."""
    return (1 - strength / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0)


@dataclass(frozen=True)
class Shrink:
    """What is to shrink, and how.

    Attributes:
        penalty: A name in `PENALTIES`, or `module:function`.
        strength: Of the penalty; it acts in proportion to the learning rate.
        stay: By initializer name, True where a weight is left alone.
    """

    penalty: str
    strength: float
    stay: Masks


class BoundShrink:
    """A `Shrink` bound to the parameters of a module that are trained."""

    def __init__(self, shrink: Shrink, parameters: Mapping[str, nn.Parameter], names: Mapping[str, str]) -> None:
        self._penalty, self._strength = PENALTIES.find(shrink.penalty), shrink.strength
        self._bound: list[tuple[nn.Parameter, Tensor, int]] = []
        for name, parameter in parameters.items():
            mask = shrink.stay.get(names.get(name, name))
            if mask is not None and not mask.all():
                groups = groups_of(~mask)
                self._bound.append((parameter, torch.from_numpy(groups).to(parameter.device), int(groups.max()) + 1))

    @torch.no_grad()
    def step(self, rate: float, progress: float) -> None:
        """Shrink, after an optimiser step.

        Args:
            rate: The learning rate of the step.
            progress: Share of the training that is done.
        """
        for parameter, groups, count in self._bound:
            squares = torch.zeros(count, dtype=parameter.dtype, device=parameter.device)
            squares.index_add_(0, groups.flatten(), parameter.square().flatten())
            factors = self._penalty(squares.sqrt(), rate * self._strength, progress)
            factors[0] = 1
            parameter.mul_(factors[groups])


def groups_of(doomed: Mask) -> npt.NDArray[np.int64]:
    """The group of each weight that goes, from 1; 0 for those that stay.

    Weights go together along the axes where all of an index goes (a filter, a channel); single weights with the others
    of their first axis' index (of the same output, in most layouts).
    """
    groups = np.zeros(doomed.shape, np.int64)
    used = 0
    for axis in range(doomed.ndim):
        whole = np.asarray(doomed.all(axis=tuple(other for other in range(doomed.ndim) if other != axis)))
        used = _enter(groups, doomed, axis, whole, used)
    everything = np.ones(doomed.shape[:1], bool)
    _enter(groups, doomed, 0, everything, used)
    return groups


def _enter(groups: npt.NDArray[np.int64], doomed: Mask, axis: int, chosen: Mask, used: int) -> int:
    """Number the chosen indices of an axis from `used` + 1, where there is no group yet; returns the last number."""
    shape = [-1 if other == axis else 1 for other in range(doomed.ndim)]
    numbers = (used + np.cumsum(chosen)).reshape(shape)
    free = doomed & (groups == 0) & chosen.reshape(shape)
    groups[free] = np.broadcast_to(numbers, doomed.shape)[free]
    return used + int(chosen.sum())
