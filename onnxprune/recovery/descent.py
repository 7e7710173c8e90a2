"""Gradient steps whose length is relative to each layer's own weights, a range test for the rate, the best state kept.

Where an exporter folded BatchNormalization, the rows of one weight differ by orders of magnitude and no single rate
suits them. So each step is that of Adam times the root mean square of the row it changes: a rate of .003 moves every
row by about .3 percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

LossAt = Callable[[int], Tensor]
"""From the number of a step to the loss of its batch: the same number gives the same batch."""

RATES = (1e-3, 3e-3, 1e-2)
RATE_OF_WHOLE = 3e-3
"""Where the training of the whole begins. No range test: over thousands of steps, ten favour a rate that is too low."""
LOWEST = RATES[0] / 4
_FIRST, _SECOND = 0.9, 0.99
_MEAN_OVER = 0.99  # of the running mean, at each step
_WARMUP = 20
LOOKS = 12
_FRUITLESS = 1 / 6  # of the steps: a try without a better state ends there
_MUCH_WORSE = 1.05


class Walk:
    """Adam with steps relative to the rows of weights; zeros of weights stay zero.

    Args:
        parameters: What is trained.
        rate: Relative length of the steps, falling to 0 as a cosine.
        steps: How many there will be.
    """

    def __init__(self, parameters: Sequence[Parameter], rate: float, steps: int) -> None:
        self.parameters, self.rate, self.steps, self.taken = list(parameters), rate, steps, 0
        self._mean = [torch.zeros_like(p) for p in parameters]
        self._square = [torch.zeros_like(p) for p in parameters]
        self._scale = [_scale_of(p.detach()) for p in parameters]

    def __call__(self, loss: Tensor) -> float:
        """Take one step down a loss; returns the loss."""
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        done = self.taken / max(1, self.steps)
        self.taken += 1
        rate = self.rate * min(1.0, self.taken / _WARMUP) * 0.5 * (1 + math.cos(math.pi * done))
        first, second = 1 - _FIRST**self.taken, 1 - _SECOND**self.taken
        with torch.no_grad():
            parts = zip(self.parameters, gradients, self._mean, self._square, self._scale, strict=True)
            for parameter, gradient, mean, square, scale in parts:
                if gradient is None:
                    continue
                mean.mul_(_FIRST).add_(gradient, alpha=1 - _FIRST)
                square.mul_(_SECOND).addcmul_(gradient, gradient, value=1 - _SECOND)
                parameter.sub_(rate * scale * (mean / first) / ((square / second).sqrt() + 1e-12))
        return float(loss.detach())


def _scale_of(weight: Tensor) -> Tensor:
    """The root mean square of each row of a weight, of a vector as a whole; 0 where a weight is zero, which stays."""
    whole = weight.square().mean().sqrt()
    if weight.dim() < 2:
        return (whole + 1e-8).expand_as(weight)
    rows = weight.flatten(1).square().mean(1).sqrt().clamp_min(1e-3 * float(whole))
    return rows.reshape(-1, *[1] * (weight.dim() - 1)) * (weight != 0)


class RunningMean:
    """The exponential mean of what parameters were over the last steps.

    Args:
        parameters: As they are at the start.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._parameters, self._mean, self._count = list(parameters), copied(parameters), 0

    @torch.no_grad()
    def add(self) -> None:
        """Take in the parameters as they stand; the first ones count for less and less."""
        self._count += 1
        weight = max(1 - _MEAN_OVER, 9 / (10 + self._count))
        for mean, parameter in zip(self._mean, self._parameters, strict=True):
            mean.lerp_(parameter, weight)

    def numbers(self) -> list[Tensor]:
        """A copy of the mean."""
        return [mean.clone() for mean in self._mean]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the parameters the mean for a while."""
        now = copied(self._parameters)
        restore(self._parameters, self._mean)
        try:
            yield
        finally:
            restore(self._parameters, now)


def copied(parameters: Sequence[Parameter]) -> list[Tensor]:
    """A copy of the numbers."""
    return [p.detach().clone() for p in parameters]


def restore(parameters: Sequence[Parameter], numbers: Sequence[Tensor]) -> None:
    """Put numbers back."""
    with torch.no_grad():
        for parameter, array in zip(parameters, numbers, strict=True):
            parameter.copy_(array)


def rate_by_range_test(parameters: Sequence[Parameter], loss_at: LossAt, steps: int) -> float:
    """Return half of the rate that leads to the least loss in a few steps from the start, which is put back.

    Half, since a few steps favour what falls fast over what ends low (Smith 2017, section 3.3).
    """
    start, results = copied(parameters), {}
    for rate in RATES:
        walk = Walk(parameters, rate, 4 * steps)
        losses = [walk(loss_at(step)) for step in range(steps)]
        restore(parameters, start)
        late = losses[steps // 2 :]
        results[rate] = sum(late) / len(late) if all(map(math.isfinite, late)) else math.inf
    return min(RATES, key=lambda rate: results[rate]) / 2


def descend(
    parameters: Sequence[Parameter], loss_at: LossAt, held: Callable[[], float], steps: int, rate: float
) -> tuple[float, float, float]:
    """Train, and end with the state that is best on held-back inputs, which may be the first.

    The states that are looked at are running means over the last steps (Polyak and Juditsky 1992): while the rate is
    high a state as it stands is off by the noise of its last steps, and tells little of where the training leads.
    Where no state is better in the first sixth of the steps, or one is much worse, the training begins anew with a
    third of the rate, for the steps that are left: a range test sees too few to tell every rate that is too high.

    Args:
        parameters: What is trained, changed in place.
        loss_at: The loss of a step.
        held: The error on held-back inputs, of the parameters as they are.
        steps: Of all tries together.
        rate: Of the first try.

    Returns:
        The error on held-back inputs before and after, and the rate of the last try.
    """
    before = best = held()
    start = kept = copied(parameters)
    while True:
        walk, mean = Walk(parameters, rate, steps), RunningMean(parameters)
        every = max(1, steps // LOOKS)
        for step in range(steps):
            loss = walk(loss_at(step))
            if not math.isfinite(loss):
                break
            mean.add()
            if (step + 1) % every == 0 or step + 1 == steps:
                with mean.in_place():
                    now = held()
                if now < best:
                    best, kept = now, mean.numbers()
                elif best == before and (step + 1 >= _FRUITLESS * steps or now > _MUCH_WORSE * before):
                    break
        steps -= walk.taken
        if best < before or rate <= LOWEST or not steps:
            restore(parameters, kept)
            return before, best, rate
        restore(parameters, start)
        rate = max(rate / 3, LOWEST)
