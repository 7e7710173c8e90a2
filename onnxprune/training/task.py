"""What a training is given and what it gives back: plain data, between `retrain.py`, which makes it, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from torch import nn

from onnxprune.data.metrics import Metric
from onnxprune.data.sources import Source
from onnxprune.training.gradual import Gradual
from onnxprune.training.losses import Loss
from onnxprune.training.masks import Masks
from onnxprune.training.shrink import Shrink
from onnxprune.training.variation import Variation
from onnxprune.training.view import Head


@dataclass(frozen=True)
class Task:
    """What is trained, and on what.

    Attributes:
        module: Outputs as `heads` say; its `onnx_names` maps parameter names to initializer names.
        source: Training data; its targets belong to the outputs `target_outputs`.
        validation: Data to pick the best state on, or None.
        loss, metric: See losses.py and metrics.py.
        masks: True where a weight stays, by initializer name.
        frozen: Initializers that are not trained.
        original: The original model's module, where loss or metric compare with it.
        fixed_batch: The only batch size that the module runs with, if its graph has it baked in.
        gradual: Prunings during the training; `export` gives them the model with the module's numbers.
        shrink: What a penalty drives towards zero.
        variation: How batches are varied; see variation.py.
    """

    module: nn.Module
    source: Source
    validation: Source | None
    heads: Sequence[Head]
    target_outputs: Sequence[int]
    loss: Loss
    metric: Metric
    masks: Masks = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    original: nn.Module | None = None
    fixed_batch: int | None = None
    gradual: Gradual | None = None
    export: Callable[[], ir.Model] | None = None
    shrink: Shrink | None = None
    variation: Variation = Variation()


@dataclass(frozen=True)
class Span:
    """The part of a longer learning-rate schedule that this training is: from `start` to `end`, shares of the whole."""

    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class EpochResult:
    """One epoch's mean training loss, and the metric after it (None without validation data)."""

    epoch: int
    step: int
    loss: float
    metric: float | None


@dataclass(frozen=True)
class TrainResult:
    """How a training went.

    Attributes:
        metric_name: The metric that picked the best state.
        start: The metric before training (None without validation data).
        best: The metric of the state that was kept.
        best_epoch: The epoch it comes from; 0 is the state before training.
        history: Every epoch.
        stopped: Why it ended early, or "".
        diverged: The sentence to tell the user if the loss was no longer a number, else "". The module then holds the
            best state so far.
        worse: The sentence to tell the user if the loss ended far above its start, else "".
    """

    metric_name: str
    start: float | None
    best: float | None
    best_epoch: int
    history: tuple[EpochResult, ...]
    stopped: str = ""
    diverged: str = ""
    worse: str = ""
