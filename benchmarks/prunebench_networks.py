"""The networks of prunebench, how each is trained, and which of the methods and findings it is run through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from prunebench_methods import Method
from recovery_mnist import Block
from torch import nn

from onnxprune.training import TrainSettings

RATIOS = (2, 4, 8, 16, 32)
CHECKED = (4, 16)
"""Compression ratios of the findings that need trainings of their own."""
DATA = {"mnist": "mnist", "fashion-mnist": "fashion_mnist"}
"""Folders of the data sets, by name."""


def perceptron(share: float = 1.0) -> nn.Module:
    """LeNet-300-100, or as deep a one with this share of its hidden neurons."""
    first, second = max(1, round(300 * share)), max(1, round(100 * share))
    layers = [nn.Linear(784, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


class ResNet(nn.Module):
    """A stem of a ResNet (convolution, BatchNorm, ReLU, pooling) and one block each of 16, 32 and 64 channels."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        a, b, c = (max(1, round(n * share)) for n in (16, 32, 64))
        self.stem = nn.Sequential(nn.Conv2d(1, a, 3, 2, 1, bias=False), nn.BatchNorm2d(a), nn.ReLU(), nn.MaxPool2d(2))
        self.blocks = nn.Sequential(Block(a, a, 1), Block(a, b, 2), Block(b, c, 2))
        self.head = nn.Linear(c, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return scores


@dataclass(frozen=True)
class Network:
    """A network and its settings, the same for all methods and data sets.

    Attributes:
        build: Makes it, with a share of its width.
        dense: Training from scratch.
        finetune: Training after pruning.
        penalties: Strengths of L1 and L2 where dense training has one.
        methods: All that it is pruned by.
        batchnorm: Whether it has BatchNorm, which is then left in the graph.
    """

    build: Callable[[float], nn.Module]
    dense: TrainSettings
    finetune: TrainSettings
    penalties: dict[str, float]
    methods: tuple[Method, ...]
    batchnorm: bool = False


MAGNITUDE = Method("weights", "magnitude")
MAIN = (
    MAGNITUDE,
    Method("weights", "random"),
    Method("weights", "magnitude", "uniform"),
    Method("weights", "random", "magnitude"),
    Method("channels", "magnitude", "cost"),
    Method("channels", "magnitude"),
    Method("channels", "magnitude", "uniform"),
    Method("channels", "magnitude", "lamp"),
    Method("channels", "random"),
    Method("channels", "random", "magnitude"),
)
"""Magnitude and the baselines, which the findings rest on; run before all others."""
OTHERS = (
    Method("weights", "lamp"),
    Method("n:m", "magnitude", "uniform"),
    Method("weights", "wanda"),
    Method("weights", "obc"),
    Method("weights", "taylor"),
    Method("block:1x4", "magnitude"),
    Method("channels", "taylor-unit", "cost"),
    Method("channels", "obc", "cost"),
    Method("channels", "activation", "cost"),
    Method("weights", "magnitude", "erk"),
    Method("weights", "obd"),
    Method("weights", "synflow"),
    Method("weights", "synflow", "iterative"),
    Method("channels", "fpgm", "cost"),
    Method("channels", "l1", "cost"),
)


def _train(steps: int, learning_rate: float = 1e-3) -> TrainSettings:
    return TrainSettings(steps=steps, batch_size=128, learning_rate=learning_rate, metric="accuracy", device="cpu")


NETWORKS = {
    "lenet-300-100": Network(
        perceptron, _train(2150), _train(430, 2e-3), {"l1": 2e-5, "l2": 5e-4}, (*MAIN, *OTHERS)
    ),
    "resnet-16-32-64": Network(
        ResNet, _train(860, 3e-3), _train(200, 3e-3), {"l1": 2e-5, "l2": 5e-4},
        (*MAIN, *OTHERS, Method("channels", "bn-scale", "cost")), batchnorm=True,
    ),
}  # fmt: skip
