"""What a user can set about retraining: plain validated data, which the Recipe embeds and the flags are made from.

`DataSettings` says how a data file is read, `TrainSettings` how one training run goes. How pruning and training take
turns stands in the recipe itself. Every field's description is its help text. Nothing here imports torch: the Recipe
needs these classes where it is not installed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from onnxprune.recipe.flag import Flag
from onnxprune.recipe.names import Names
from onnxprune.recipe.numbers import fraction, row

Share = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, BeforeValidator(fraction)]
Survivors = Literal["continue", "lr-rewind", "rewind", "reinit"]

_RETRAIN = Flag("Retrain")
_OPTIMISER = Flag("Retrain: optimiser and regularisation")
_READING = Flag("Data: how they are read")


def _two(size: Any) -> Any:
    """A height and a width; both have to be there."""
    numbers = row(size)
    if numbers is not None and not (isinstance(numbers, (list, tuple)) and len(numbers) == 2):
        raise ValueError("it has to be a height and a width, such as 224x224")
    return numbers


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSettings(_Settings):
    """How data are read: images and tables as the model's input, the axes of samples, the patience with functions."""

    layout: Annotated[Literal["NCHW", "NHWC"], _READING] = Field(
        default="NCHW",
        description="Axis order of image batches.",
    )
    size: Annotated[
        tuple[PositiveInt, PositiveInt] | None, BeforeValidator(_two), replace(_READING, name="image-size")
    ] = Field(
        default=None,
        description="Height and width that images are fitted into; taken from the model's input where it has them.",
    )
    fit: Annotated[Literal["stretch", "crop", "letterbox"] | None, replace(_READING, name="image-fit")] = Field(
        default=None,
        description="How images of other sizes are fitted in: stretch; crop (resized, then the middle .875 of the "
        "shorter side); letterbox (whole, with grey around). By default letterbox for pictures with boxes, crop for a "
        "classifier, else stretch.",
    )
    part: Annotated[Literal["train", "val"] | None, replace(_READING, name="data-part")] = Field(
        default=None,
        description="Part of a YOLO data set that is read; by default train to train and to calibrate on, else val.",
    )
    mean: Annotated[tuple[float, ...], BeforeValidator(row), _READING] = Field(
        default=(0.0,),
        description="Subtracted per channel, after scaling pixels to 0..1.",
    )
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(row), _READING] = Field(
        default=(1.0,),
        description="Divided by per channel, after the mean.",
    )
    scale: Annotated[float, replace(_READING, name="image-scale")] = Field(
        default=1 / 255,
        gt=0,
        description="Factor on the 0..255 pixel values before mean and std.",
    )
    target: Annotated[str | None, replace(_READING, name="target-column")] = Field(
        default=None,
        description="Column of a CSV that holds the target; the last one by default.",
    )
    sample_axis: Annotated[tuple[str, ...], _READING] = Field(
        default=(),
        description="Axis of an input that counts samples, where not found: state:1, or rate:none for one without.",
    )
    input_shape: Annotated[tuple[str, ...], _READING] = Field(
        default=(),
        description="Shape of an input at which figures and latency are taken: image:1x3x224x224.",
    )
    tokenizer: Annotated[Path | None, _READING] = Field(
        default=None,
        description="The tokenizer.json of the model, which .txt and .jsonl data are cut into tokens with.",
    )
    sequence_length: Annotated[int | None, _READING] = Field(
        default=None,
        ge=1,
        description="Tokens in a row of text; by default what the model takes, at most 128.",
    )
    text: Annotated[Literal["auto", "packed", "lines"], _READING] = Field(
        default="auto",
        description="Rows of text: packed (all tokens one after the other), lines (a row for each line or record), or "
        "auto: packed for models that predict the next token.",
    )
    timeout: Annotated[float, replace(_READING, name="data-timeout")] = Field(
        default=40.0,
        gt=0,
        description="Seconds that module:function may take for one batch.",
    )
    samples: Annotated[int | None, replace(_READING, name="data-samples")] = Field(
        default=None,
        ge=1,
        description="Samples that are read of module:function in one pass; a function that never ends needs it.",
    )


class TrainSettings(_Settings):
    """One training run."""

    epochs: Annotated[int | None, _RETRAIN] = Field(
        default=None,
        ge=1,
        description="Passes over the data; 3 when neither epochs nor steps is given.",
    )
    steps: Annotated[int | None, _RETRAIN] = Field(
        default=None,
        ge=1,
        description="Optimiser steps, instead of epochs.",
    )
    batch_size: Annotated[int, _RETRAIN] = Field(
        default=64,
        ge=1,
        description="Samples in a step, over all devices together.",
    )
    optimizer: Annotated[str, _OPTIMISER] = Field(
        default="adam",
        description="Optimiser: sgd, adam, adamw, or module:function.",
    )
    learning_rate: Annotated[float, replace(_OPTIMISER, name="lr")] = Field(
        default=1e-3,
        gt=0,
        description="Highest learning rate.",
    )
    momentum: Annotated[float, _OPTIMISER] = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Momentum of SGD.",
    )
    schedule: Annotated[str, replace(_OPTIMISER, name="lr-schedule")] = Field(
        default="cosine",
        description="Learning rate over time: constant; cosine to 0; step: divided by 10 twice; one-cycle; or "
        "module:function.",
    )
    warmup: Annotated[Share, _OPTIMISER] = Field(
        default=0.0,
        description="Share of the steps over which the learning rate rises linearly from 0.",
    )
    clip: Annotated[float | None, _OPTIMISER] = Field(
        default=None,
        gt=0,
        description="Largest norm of the whole gradient.",
    )
    l1: Annotated[Strength, _OPTIMISER] = Field(
        default=0.0,
        description="Strength of the L1 penalty on weights (not biases): l1 * sum |w|.",
    )
    l2: Annotated[Strength, _OPTIMISER] = Field(
        default=0.0,
        description="Strength of the L2 penalty on weights (not biases): l2 / 2 * sum w^2.",
    )
    weight_decay: Annotated[Strength, _OPTIMISER] = Field(
        default=0.0,
        description="Decoupled decay of weights (not biases) as in AdamW: w -= lr * weight_decay * w.",
    )
    loss: Annotated[str, _RETRAIN] = Field(
        default="auto",
        description="What is minimised: auto (cross-entropy for integer labels, mse for real targets, distillation "
        "without either), cross-entropy, mse, distillation, or module:function.",
    )
    label_smoothing: Annotated[Fraction, _OPTIMISER] = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of each label that is spread over all classes (Szegedy et al. 2016): 0.1 is usual.",
    )
    augment: Annotated[Names, replace(_RETRAIN, commas=True)] = Field(
        default=(),
        description="Change images anew in each epoch: crop (move by up to an eighth), flip (mirror left to right), or "
        "module:function.",
    )
    mixup: Annotated[Strength, _OPTIMISER] = Field(
        default=0.0,
        description="Mix each sample with another, by a share from a Beta distribution with this parameter (Zhang et "
        "al. 2018): 0.2 is usual, 0 mixes nothing.",
    )
    distill: Annotated[Share, _RETRAIN] = Field(
        default=0.0,
        description="With labels: share of the loss that is distillation from the original model, 0 to 1.",
    )
    temperature: Annotated[float, _RETRAIN] = Field(
        default=2.0,
        gt=0,
        description="Temperature of the distillation's class distributions.",
    )
    metric: str | None = Field(
        default=None,
        description="accuracy, top5, mse, agreement (with the original model), perplexity, cosine, spearman, map and "
        "map50 (mean average precision of detectors), or module:function; by default the one that fits the data.",
    )
    validation: Annotated[float, _RETRAIN] = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the training data held out to pick the best state.",
    )
    keep_best: Annotated[bool, _RETRAIN] = Field(
        default=True,
        description="End with the state that was best on the validation data.",
    )
    patience: Annotated[int | None, _RETRAIN] = Field(
        default=None,
        ge=1,
        description="Stop after this many epochs without a better metric.",
    )
    ema: Annotated[float | None, _OPTIMISER] = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the weights, which is what is measured and kept.",
    )
    freeze: Annotated[tuple[str, ...], _RETRAIN] = Field(
        default=(),
        description="Not trained: conv, fc, or a pattern of weight names (fc1*).",
    )
    batch_norm: Annotated[Literal["update", "freeze"], _OPTIMISER] = Field(
        default="update",
        description="BatchNorm statistics: follow the training batches, or stay as they are in the file.",
    )
    dropout: Annotated[float, _OPTIMISER] = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Dropout before fully connected layers of the unpruned network; a pruned layer gets "
        "D_r = D_o * sqrt(C_r / C_o), C being its connections (Han et al. 2015, section 3.2).",
    )
    precision: Annotated[Literal["fp32", "fp16", "bf16"], _OPTIMISER] = Field(
        default="fp32",
        description="Arithmetic of the forward pass (autocast).",
    )
    device: Annotated[Literal["auto", "cpu"], _OPTIMISER] = Field(
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

    @model_validator(mode="after")
    def _one_share_of_distillation(self) -> TrainSettings:
        if self.loss == "distillation" and 0 < self.distill < 1:
            raise ValueError(f"loss distillation is nothing else, and distill {self.distill:g} asks for a share of it")
        return self
