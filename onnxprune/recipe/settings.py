"""The settings of `onnxprune.prune` and `onnxprune.sweep` as typed keywords, by which editors complete them.

Written by docs/generate_settings.py from the fields of the recipe; do not edit.
"""

# fmt: off
# ruff: noqa: E501
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

from onnxprune.recipe.training import DataSettings, TrainSettings


class ReadingSettings(TypedDict, total=False):
    """How data are read."""

    layout: Literal["NCHW", "NHWC"]
    """Axis order of image batches."""
    size: str | Sequence[float] | None
    """Height and width that images are fitted into; taken from the model's input where it has them."""
    fit: Literal["stretch", "crop", "letterbox"] | None
    """How images of other sizes are fitted in: stretch; crop (resized, then the middle .875 of the shorter side);
    letterbox (whole, with grey around). By default letterbox for pictures with boxes, crop for a classifier, else
    stretch."""
    part: Literal["train", "val"] | None
    """Part of a YOLO data set that is read; by default train to train and to calibrate on, else val."""
    mean: str | Sequence[float]
    """Subtracted per channel, after scaling pixels to 0..1."""
    std: str | Sequence[float]
    """Divided by per channel, after the mean."""
    scale: float
    """Factor on the 0..255 pixel values before mean and std."""
    target: str | None
    """Column of a CSV that holds the target; the last one by default."""
    sample_axis: Sequence[str]
    """Axis of an input that counts samples, where not found: state:1, or rate:none for one without."""
    input_shape: Sequence[str]
    """Shape of an input at which figures and latency are taken: image:1x3x224x224."""
    tokenizer: str | Path | None
    """The tokenizer.json of the model, which .txt and .jsonl data are cut into tokens with."""
    sequence_length: int | None
    """Tokens in a row of text; by default what the model takes, at most 128."""
    text: Literal["auto", "packed", "lines"]
    """Rows of text: packed (all tokens one after the other), lines (a row for each line or record), or auto: packed for
    models that predict the next token."""
    timeout: float
    """Seconds that module:function may take for one batch."""
    samples: int | None
    """Samples that are read of module:function in one pass; a function that never ends needs it."""


class TrainingSettings(TypedDict, total=False):
    """One training."""

    epochs: int | None
    """Passes over the data; 3 when neither epochs nor steps is given."""
    steps: int | None
    """Optimiser steps, instead of epochs."""
    batch_size: int
    """Samples in a step, over all devices together."""
    optimizer: str
    """Optimiser: sgd, adam, adamw, or module:function."""
    learning_rate: float
    """Highest learning rate."""
    momentum: float
    """Momentum of SGD."""
    schedule: str
    """Learning rate over time: constant; cosine to 0; step: divided by 10 twice; one-cycle; or module:function."""
    warmup: float
    """Share of the steps over which the learning rate rises linearly from 0."""
    clip: float | None
    """Largest norm of the whole gradient."""
    l1: float
    """Strength of the L1 penalty on weights (not biases): l1 * sum |w|."""
    l2: float
    """Strength of the L2 penalty on weights (not biases): l2 / 2 * sum w^2."""
    weight_decay: float
    """Decoupled decay of weights (not biases) as in AdamW: w -= lr * weight_decay * w."""
    loss: str
    """What is minimised: auto (cross-entropy for integer labels, mse for real targets, distillation without either),
    cross-entropy, mse, distillation, or module:function."""
    label_smoothing: float | str
    """Share of each label that is spread over all classes (Szegedy et al. 2016): 0.1 is usual."""
    augment: str | Sequence[str]
    """Change images anew in each epoch: crop (move by up to an eighth), flip (mirror left to right), or
    module:function."""
    mixup: float
    """Mix each sample with another, by a share from a Beta distribution with this parameter (Zhang et al. 2018): 0.2 is
    usual, 0 mixes nothing."""
    distill: float
    """With labels: share of the loss that is distillation from the original model, 0 to 1."""
    temperature: float
    """Temperature of the distillation's class distributions."""
    metric: str | None
    """Accuracy, top5, mse, agreement (with the original model), perplexity, cosine, spearman, map and map50 (mean
    average precision of detectors), or module:function; by default the one that fits the data."""
    validation: float
    """Share of the training data held out to pick the best state."""
    keep_best: bool
    """End with the state that was best on the validation data."""
    patience: int | None
    """Stop after this many epochs without a better metric."""
    ema: float | None
    """Decay of an exponential moving average of the weights, which is what is measured and kept."""
    freeze: Sequence[str]
    """Not trained: conv, fc, or a pattern of weight names (fc1*)."""
    batch_norm: Literal["update", "freeze"]
    """BatchNorm statistics: follow the training batches, or stay as they are in the file."""
    dropout: float
    """Dropout before fully connected layers of the unpruned network; a pruned layer gets D_r = D_o * sqrt(C_r / C_o), C
    being its connections (Han et al. 2015, section 3.2)."""
    precision: Literal["fp32", "fp16", "bf16"]
    """Arithmetic of the forward pass (autocast)."""
    device: Literal["auto", "cpu"]
    """Cpu keeps off accelerators that are there."""
    seed: int
    """Decides the order of the data, dropout and re-initialisation."""


class FixedSettings(TypedDict, total=False):
    """Settings that have one value in a sweep, too."""

    unit_share: float | str
    """Of a mix: the share of the sparsity that whole units make up."""
    calibration_samples: int
    """Use at most this many samples of --calibration (or of --data, which stand in for them)."""
    kinds: str | Sequence[str]
    """Units to remove: heads, head-size, experts, hidden, channels, neurons, kv-groups, query-heads (default: all);
    heads are all of them, also where query heads share keys and values (kv-groups, query-heads); inspect says which
    there are."""
    allow_inexact: bool
    """Also remove units on axes that a normalisation runs over."""
    interface: Literal["keep", "narrow"] | bool
    """Let heads of a decoder's caches go: inputs and outputs of all caches become as narrow as the heads that are left
    (narrow), instead of keeping their extents (keep)."""
    round_to: int | Literal["auto", "none"]
    """Step of kept counts: auto (16 for Conv, 8 or more for wide layers), none or a number."""
    floor: int
    """No axis keeps fewer indices."""
    exclude: Sequence[str]
    """Leave weights or nodes alone whose name matches (* and ?)."""
    only: Sequence[str]
    """Prune only weights or nodes whose name matches."""
    ends: Literal["auto", "prune", "keep"]
    """First and last layer: auto keeps them where they hold under 1 % of the weights."""
    remove_dead: bool
    """Afterwards remove units that the outputs do not depend on, exactly."""
    seed: int
    """Of everything that is drawn at random."""
    verify_by: Literal["auto", "whole", "blocks"]
    """How models are run to verify the result: blocks (a few layers at a time, for models larger than the memory),
    whole, or auto: blocks above 512 MiB with weights in float32; a metric takes the whole model."""
    retrain: TrainSettings | TrainingSettings | bool | None
    """Train the pruned model on --data."""
    retrain_last: TrainSettings | TrainingSettings | None
    """The retraining after the last pruning, if it is to differ."""
    iterations: int
    """In how many steps to prune, each with statistics made anew (and retraining, recovery)."""
    schedule: str
    """Sparsity after each step, or with a budget the share saved: one-shot, linear, exponential, cubic, or
    module:function."""
    initial_sparsity: float | str
    """Sparsity that the schedule starts from."""
    survivors: Literal["continue", "lr-rewind", "rewind", "reinit"]
    """What the surviving weights retrain from; continue: where they are, one learning-rate schedule over all
    iterations; lr-rewind: where they are, the schedule starting anew each time (Renda et al. 2020); rewind: their
    values in a checkpoint (Frankle et al. 2019); reinit: new random values."""
    rewind_to: str | Path | None
    """ONNX file with the weights that --survivors rewind goes back to."""
    alternate: bool
    """Each iteration in two halves: prune and retrain the fully connected layers with the convolutions fixed, then the
    reverse (Han et al. 2015, section 3.3)."""
    prune_every: int | None
    """Prune while training instead of before it: every so many steps the sparsity rises along the schedule, and what
    goes is chosen from the weights as they are (Zhu and Gupta 2017, whose schedule is cubic)."""
    ramp: float | str
    """Share of the training over which the sparsity rises, with --prune-every."""
    shrink: str
    """Before each pruning, train with a penalty on what is about to go: no, growing-l2 (Wang et al. 2021), group-lasso
    (Wen et al. 2016), which sends whole units to zero, or module:function."""
    shrink_strength: float
    """Strength of that penalty; it acts in proportion to the learning rate."""
    shrink_epochs: int
    """Length of that training."""
    reading: DataSettings | ReadingSettings
    """How --data and --eval-data are read."""
    engine: Literal["openvino", "tensorrt", "xnnpack"] | None
    """Write what this engine's kernels for zeros need, and only that: openvino (int8 matrix products), tensorrt (2:4),
    xnnpack (1x1 convolutions); sets structure, quantize and allocation where they are left open, says which layers the
    engine will not use, and measures in openvino where it is installed."""
    pack_values: Literal["fp32", "fp16", "int8", "codebook16", "codebook256"]
    """What packed weights keep of their values; fp32 keeps every bit."""
    sparse_initializers: bool
    """Store zeros as ONNX sparse_initializer, which OpenVINO and full checks refuse: prefer pack."""
    require: Sequence[str]
    """Write nothing unless this holds, such as latency<=0.6; of latency, size, parameters, macs, metric_drop,
    output_change, sparsity."""
    accept_unproved: bool
    """Write the model although no inputs were found on which equal outputs prove that the cut is right."""


class Settings(FixedSettings, total=False):
    """All settings of a run."""

    sparsity: float | str
    """Share of prunable parameters that end up zero or gone: 0.5, 50% or 2x (half is left)."""
    quality: float | None
    """Instead of a share: weights below q standard deviations of their layer go (Han et al. 2015)."""
    target_latency: float | str | None
    """Look for the sparsity at which the measured latency, after / before, is this: 0.5, 50%, 0.5x or 2x (twice as
    fast)."""
    target_macs: float | str | None
    """Look for the sparsity at which at most this share of the multiply-adds is left."""
    target_size: float | str | None
    """Look for the sparsity at which the file has at most this share of its bytes."""
    max_drop: float | str | None
    """Look for the highest sparsity at which the metric on --eval-data falls by at most this, in its own unit (0.01 or
    1% is one point of accuracy)."""
    structure: str
    """What goes: weights (single ones become zero), channels (whole units are removed), blocks (whole residual blocks
    are removed), layers (whole layers of a transformer, with --resize-io with their caches), N:M such as 2:4, block:RxC
    such as block:1x4, tiles (groups of outputs read inputs of their own, and the zeros run faster), a mix such as
    channels+weights, channels+2:4 or channels+tiles, or joint (units, tiles and residual blocks compete by what they
    lose for what they save)."""
    criterion: str
    """How much a weight or a unit matters; onnxprune methods lists them; with --calibration auto is obc for units and
    block-influence for residual blocks, else magnitude."""
    allocation: str
    """How layers compete: global (all ranked together), uniform, lamp or sensitivity (scanned on --calibration);
    weights also: erk; units also: cost (importance lost per cost saved) and measured (each group is cut alone on
    --calibration, made up for, and the outputs compared); auto is measured for units where --calibration is given, else
    cost, and lamp for weights, but for criteria that are made for global or uniform."""
    recover: str | Sequence[str]
    """Change the weights that are left so that outputs come back to the original's: auto (where --calibration is
    given), no, or methods."""
    effort: Literal["low", "medium", "high"]
    """Time for recovery by auto: low fits weights in closed form; medium and high then align blocks with the original's
    by gradients, which needs PyTorch, and say beforehand how long that takes."""
    quantize: Literal["no", "int8", "int8-dynamic", "int4", "fp16"]
    """After pruning; int8 needs inputs to calibrate on (--calibration or --eval-data)."""
    pack: Literal["no", "auto", "smallest", "gap8", "gap4", "bitmask"]
    """Store zeros small in standard operators that fold when a session loads."""


class SweepSettings(FixedSettings, total=False):
    """All settings of a sweep."""

    sparsity: float | str | Sequence[float | str]
    quality: float | Sequence[float | None]
    target_latency: float | str | Sequence[float | str | None]
    target_macs: float | str | Sequence[float | str | None]
    target_size: float | str | Sequence[float | str | None]
    max_drop: float | str | Sequence[float | str | None]
    structure: str | Sequence[str]
    criterion: str | Sequence[str]
    allocation: str | Sequence[str]
    recover: str | Sequence[str] | Sequence[str | Sequence[str]]
    effort: Literal["low", "medium", "high"] | Sequence[Literal["low", "medium", "high"]]
    quantize: Literal["no", "int8", "int8-dynamic", "int4", "fp16"] | Sequence[Literal["no", "int8", "int8-dynamic", "int4", "fp16"]]
    pack: Literal["no", "auto", "smallest", "gap8", "gap4", "bitmask"] | Sequence[Literal["no", "auto", "smallest", "gap8", "gap4", "bitmask"]]
