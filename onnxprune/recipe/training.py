"""What a user can set about retraining: plain validated data, which the Recipe embeds and the flags are made from.

`DataSettings` says how a data file is read, `TrainSettings` how one training run goes, `IterateSettings` how pruning
and training take turns. Every field's description is its help text. Nothing here imports torch: the Recipe needs these
classes where it is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Survivors = Literal["continue", "lr-rewind", "rewind", "reinit"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSettings(_Settings):
    """How images and tables are turned into the model's input; .npz files and functions need none of it."""

    layout: Literal["NCHW", "NHWC"] = Field(
        default="NCHW",
        description="Axis order of image batches.",
    )
    size: tuple[int, int] | None = Field(
        default=None,
        description="Height and width that images are resized to; taken from the model's input where it has them.",
    )
    mean: tuple[float, ...] = Field(
        default=(0.0,),
        description="Subtracted per channel, after scaling pixels to 0..1.",
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1.0,),
        description="Divided by per channel, after the mean.",
    )
    scale: float = Field(
        default=1 / 255,
        gt=0,
        description="Factor on the 0..255 pixel values before mean and std.",
    )
    target: str | None = Field(
        default=None,
        description="Column of a CSV that holds the target; the last one by default.",
    )


class TrainSettings(_Settings):
    """One training run."""

    epochs: int | None = Field(
        default=None,
        ge=1,
        description="Passes over the data; 3 when neither epochs nor steps is given.",
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        description="Optimiser steps, instead of epochs.",
    )
    batch_size: int = Field(
        default=64,
        ge=1,
        description="Samples in a step, over all devices together.",
    )
    optimizer: Literal["sgd", "adam", "adamw"] = Field(
        default="adam",
        description="Optimiser.",
    )
    learning_rate: float = Field(
        default=1e-3,
        gt=0,
        description="Highest learning rate.",
    )
    momentum: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Momentum of SGD.",
    )
    schedule: Literal["constant", "cosine", "step", "one-cycle"] = Field(
        default="cosine",
        description="Learning rate over time: constant; cosine to 0; step: divided by 10 twice; one-cycle.",
    )
    warmup: Share = Field(
        default=0.0,
        description="Share of the steps over which the learning rate rises linearly from 0.",
    )
    clip: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Largest norm of the whole gradient.",
    )
    l1: Strength = Field(
        default=0.0,
        description="Strength of the L1 penalty on weights (not biases): l1 * sum |w|.",
    )
    l2: Strength = Field(
        default=0.0,
        description="Strength of the L2 penalty on weights (not biases): l2 / 2 * sum w^2.",
    )
    weight_decay: Strength = Field(
        default=0.0,
        description="Decoupled decay of weights (not biases) as in AdamW: w -= lr * weight_decay * w.",
    )
    loss: str = Field(
        default="auto",
        description="auto (cross-entropy for integer labels, mse for real targets, distillation without either), "
        "cross-entropy, mse, distillation, or module:function.",
    )
    distill: Share = Field(
        default=0.0,
        description="With labels: share of the loss that is distillation from the original model, 0 to 1.",
    )
    temperature: float = Field(
        default=2.0,
        gt=0,
        description="Temperature of the distillation's class distributions.",
    )
    metric: str | None = Field(
        default=None,
        description="accuracy, top5, mse, agreement (with the original model), or module:function; by default the one "
        "that fits the data.",
    )
    validation: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1,
        description="Share of the training data held out to pick the best state.",
    )
    keep_best: bool = Field(
        default=True,
        description="End with the state that was best on the validation data.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many epochs without a better metric.",
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Decay of an exponential moving average of the weights, which is what is measured and kept.",
    )
    freeze: tuple[str, ...] = Field(
        default=(),
        description="Not trained: conv, fc, or a pattern of weight names (fc1*).",
    )
    batch_norm: Literal["update", "freeze"] = Field(
        default="update",
        description="BatchNorm statistics: follow the training batches, or stay as they are in the file.",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Dropout before fully connected layers of the unpruned network; a pruned layer gets "
        "D_r = D_o * sqrt(C_r / C_o), C being its connections (Han et al. 2015, section 3.2).",
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        default="fp32",
        description="Arithmetic of the forward pass (autocast).",
    )
    device: Literal["auto", "cpu"] = Field(
        default="auto",
        description="cpu keeps off accelerators that are there.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="Decides the order of the data, dropout and re-initialisation.",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self


class IterateSettings(_Settings):
    """How pruning and retraining take turns (Han et al. 2015, section 3.4)."""

    sparsity: Share = Field(
        description="Share of the prunable parameters that is gone after the last iteration.",
    )
    initial_sparsity: Share = Field(
        default=0.0,
        description="Sparsity that the schedule starts from.",
    )
    iterations: int = Field(
        default=1,
        ge=1,
        description="In how many steps to prune, each with statistics made anew (and retraining, recovery).",
    )
    schedule: str = Field(
        default="exponential",
        description="Sparsity after each step: one-shot, linear, exponential, cubic, or module:function.",
    )
    weights: Survivors = Field(
        default="lr-rewind",
        description="What the surviving weights retrain from. continue: where they are, one learning-rate schedule "
        "over all iterations. lr-rewind: where they are, the schedule starting anew each time (Renda et al. 2020). "
        "rewind: their values in a checkpoint (Frankle et al. 2019). reinit: new random values.",
    )
    rewind_to: Path | None = Field(
        default=None,
        description="ONNX file with the weights that `rewind` goes back to.",
    )
    prune_every: int | None = Field(
        default=None,
        ge=1,
        description="Prune while training instead of before it: every so many steps the sparsity rises along the "
        "schedule, and what goes is chosen from the weights as they are (Zhu and Gupta 2017, whose schedule is cubic).",
    )
    ramp: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.75,
        description="Share of the training over which the sparsity rises, where prune_every is given.",
    )
    shrink: Literal["no", "growing-l2", "group-lasso"] = Field(
        default="no",
        description="Before each pruning, train with a penalty on what is about to go: growing-l2 (Wang et al. 2021) "
        "or group-lasso (Wen et al. 2016), which sends whole units to zero.",
    )
    shrink_strength: Annotated[float, Field(gt=0)] = Field(
        default=10.0,
        description="Strength of that penalty; it acts in proportion to the learning rate.",
    )
    shrink_epochs: int = Field(
        default=3,
        ge=1,
        description="Length of that training.",
    )
    alternate: bool = Field(
        default=False,
        description="Each iteration in two halves: prune and retrain the fully connected layers with the convolutions "
        "fixed, then the reverse (Han et al. 2015, section 3.3).",
    )
    train: TrainSettings = Field(
        default_factory=TrainSettings,
        description="The retraining of each iteration.",
    )
    last: TrainSettings | None = Field(
        default=None,
        description="The retraining after the last pruning, if it is to differ.",
    )

    @model_validator(mode="after")
    def _rewind_has_target(self) -> IterateSettings:
        if self.rewind_to is not None and self.weights != "rewind":
            raise ValueError("rewind_to is given, but weights is not 'rewind'")
        if self.prune_every is not None:
            if self.iterations > 1 or self.alternate or self.shrink != "no":
                raise ValueError("prune_every prunes within one training: not with iterations, alternate or shrink")
            if self.weights in ("rewind", "reinit"):
                raise ValueError(f"prune_every prunes while training, and weights {self.weights!r} would undo that")
        if self.sparsity < self.initial_sparsity:
            raise ValueError(f"sparsity {self.sparsity:g} is below initial_sparsity {self.initial_sparsity:g}")
        return self
