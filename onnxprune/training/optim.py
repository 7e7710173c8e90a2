"""The optimiser, the learning rate of each step, and what is added to gradients and weights around a step.

The learning rate is a plain function of the step, so that nothing about it has to be saved or restored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from onnxprune.plugins import Plugins, Registry, judged, no_number
from onnxprune.recipe.training import TrainSettings

Curve = Callable[[float], float]
"""Share of the run that is over, 0 to 1 -> factor on the highest learning rate."""

LEARNING_RATES: Registry[Curve] = Registry(
    "learning-rate schedule",
    Plugins("onnxprune.learning_rates"),
    flag="--lr-schedule",
    of_function=lambda name, function: judged(function, name, no_number),
)

MakeOptimizer = Callable[[TrainSettings, "list[nn.Parameter]"], torch.optim.Optimizer]


def _no_optimizer(answer: object, *_: object) -> str:
    return "" if isinstance(answer, torch.optim.Optimizer) else "is no torch.optim.Optimizer"


OPTIMIZERS: Registry[MakeOptimizer] = Registry(
    "optimiser",
    Plugins("onnxprune.optimizers"),
    flag="--optimizer",
    of_function=lambda name, function: judged(function, name, _no_optimizer),
)
"""Optimisers. Weight decay is none of their business: `Regulariser` does it, alike for all."""


@LEARNING_RATES.register("constant")
def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


@LEARNING_RATES.register("cosine")
def cosine(progress: float) -> float:
    """(1 + cos(pi p)) / 2. Source: Loshchilov and Hutter 2017 (SGDR), equation 5, without restarts."""
    return (1 + math.cos(math.pi * progress)) / 2


@LEARNING_RATES.register("step")
def step(progress: float) -> float:
    """1, then 0.1 from one half, then 0.01 from three quarters of the run. Source: He et al. 2016, section 4.2."""
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


@LEARNING_RATES.register("one-cycle")
def one_cycle(progress: float) -> float:
    """From 1/25 up to 1 in the first 30 %, then down to 4e-6, both by cosine. Source: Smith and Topin 2018."""
    start, peak, end = 1 / 25, 0.3, 1 / 25e4
    if progress < peak:
        return start + (1 - start) * (1 - math.cos(math.pi * progress / peak)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * (progress - peak) / (1 - peak))) / 2


def learning_rate(settings: TrainSettings, step: int, steps: int) -> float:
    """The learning rate of step `step`, counted from 0, of `steps`: linear warm-up, then the schedule over the rest."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return settings.learning_rate * LEARNING_RATES.find(settings.schedule)(progress)


def make_optimizer(settings: TrainSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that the settings name.

    Raises:
        RecipeError: There is none of that name.
    """
    return OPTIMIZERS.find(settings.optimizer)(settings, list(parameters))


@OPTIMIZERS.register("sgd")
def sgd(settings: TrainSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    fused = _can_fuse(parameters)
    return torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum, fused=fused)


@OPTIMIZERS.register("adam")
def adam(settings: TrainSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam. Source: Kingma and Ba 2015."""
    return torch.optim.Adam(parameters, lr=settings.learning_rate, fused=_can_fuse(parameters))


@OPTIMIZERS.register("adamw")
def adamw(settings: TrainSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW without its decay, which is Adam. Source: Loshchilov and Hutter 2019."""
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0, fused=_can_fuse(parameters))


def _can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


class Regulariser:
    """L1 and L2 penalties and decoupled decay, on weights of two or more axes (not on biases and scales).

    The penalties act through their gradients, l1 sign(w) + l2 w, which is cheaper than a sum in the loss and the same.
    """

    def __init__(self, settings: TrainSettings, parameters: Iterable[nn.Parameter]) -> None:
        self.settings = settings
        self.weights: list[Tensor] = [p for p in parameters if p.dim() >= 2]

    @torch.no_grad()
    def gradients(self) -> None:
        """Add the penalties' gradients, before a step."""
        weights = [w for w in self.weights if w.grad is not None]
        grads: list[Tensor] = [w.grad for w in weights if w.grad is not None]
        if not weights:
            return
        if self.settings.l1:
            torch._foreach_add_(grads, torch._foreach_sign(weights), alpha=self.settings.l1)
        if self.settings.l2:
            torch._foreach_add_(grads, weights, alpha=self.settings.l2)

    @torch.no_grad()
    def weights_decay(self, rate: float) -> None:
        """w -= rate * weight_decay * w, before a step. Source: Loshchilov and Hutter 2019 (AdamW)."""
        if self.settings.weight_decay and self.weights:
            torch._foreach_mul_(self.weights, 1 - rate * self.settings.weight_decay)


class MovingAverage:
    """An exponential moving average of weights: a <- d a + (1 - d) w. Polyak and Juditsky 1992, in its usual form."""

    def __init__(self, decay: float, parameters: Iterable[nn.Parameter]) -> None:
        self.decay = decay
        self.parameters: list[Tensor] = list(parameters)
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        torch._foreach_lerp_(self.average, self.parameters, 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average; a second call changes them back."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
