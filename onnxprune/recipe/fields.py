"""The fields of a recipe, each once: type, default, help text and flag. What they mean together is checked elsewhere.

To add a setting, add a field here: its flag, its help, its key in a recipe file and its line in the reference page are
made from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from onnxprune.recipe import requirements
from onnxprune.recipe.flag import TURNS, Flag
from onnxprune.recipe.granularity import DEFAULT_UNIT_SHARE, KINDS, SHARING, Parts, parse_structure
from onnxprune.recipe.names import Names, listed
from onnxprune.recipe.numbers import fraction, share_gone, share_left
from onnxprune.recipe.training import DataSettings, Survivors, TrainSettings

TARGETS = ("target_latency", "target_macs", "target_size", "max_drop")
"""Fields that decide the sparsity by a search."""

AMOUNTS = ("sparsity", "quality", *TARGETS)
"""Fields that say how much goes; a recipe has one of them."""

SYNTHETIC = "synthetic"
"""In the place of calibration data: inputs are made up from the model."""


def is_synthetic(calibration: object) -> bool:
    """Say whether what was given as calibration data is the word for inputs made up from the model."""
    return isinstance(calibration, (str, Path)) and str(calibration) == SYNTHETIC


def _methods(names: Any) -> Any:
    """Methods of recovery; ``none`` is another word for ``no``."""
    methods = listed(names)
    return ("no",) if methods in (("none",), ["none"]) else methods


def _by_default(settings: Any) -> Any:
    """True means: with the default settings; False means: not at all."""
    return {} if settings is True else None if settings is False else settings


Ratio = Annotated[float, BeforeValidator(share_left), Field(gt=0, lt=1)]
"""A figure after / before: 0.5, ``50%``, ``0.5x`` or ``2x`` (twice as fast, half as large)."""

Gone = Annotated[float, BeforeValidator(share_gone)]
"""A share that goes: 0.5, ``50%`` or ``2x`` (half of it is left)."""

Fraction = Annotated[float, BeforeValidator(fraction)]
"""A share: 0.01 or ``1%``."""

RoundTo = Annotated[int, Field(ge=1)] | Literal["auto", "none"]
Effort = Literal["low", "medium", "high"]

_AMOUNT, _WHAT, _STEPS, _DATA = Flag("How much"), Flag("What goes"), Flag("In steps"), Flag("Data")
_TURNS, _DEPLOY, _RUN = Flag(TURNS), Flag("Deploy"), Flag("Run")


class Fields(BaseModel):
    """What a run does to a model, field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sparsity: Annotated[Gone, Flag("How much", "Share of the weights that goes: 0.5 or 50%.", short="-s", shown="")] = (
        Field(
            0.0,
            ge=0,
            lt=1,
            description="share of prunable parameters that end up zero or gone: 0.5, 50% or 2x (half is left)",
        )
    )
    quality: Annotated[float | None, _AMOUNT] = Field(
        None,
        gt=0,
        description="instead of a share: weights below q standard deviations of their layer go (Han et al. 2015)",
    )
    target_latency: Annotated[Ratio | None, Flag("How much", "Or the latency to reach, after / before.")] = Field(
        None,
        description="look for the sparsity at which the measured latency, after / before, is this: 0.5, 50%, 0.5x or "
        "2x (twice as fast)",
    )
    target_macs: Annotated[Ratio | None, _AMOUNT] = Field(
        None, description="look for the sparsity at which at most this share of the multiply-adds is left"
    )
    target_size: Annotated[Ratio | None, _AMOUNT] = Field(
        None, description="look for the sparsity at which the file has at most this share of its bytes"
    )
    max_drop: Annotated[Fraction | None, Flag("How much", "Or the most that the metric may fall.")] = Field(
        None,
        ge=0,
        description="look for the highest sparsity at which the metric on --eval-data falls by at most this, in its "
        "own unit (0.01 or 1% is one point of accuracy)",
    )
    structure: Annotated[str, Flag("What goes", "weights (compress), channels (run faster), 2:4.")] = Field(
        "weights",
        description="what goes: weights (single ones become zero), channels (whole units are removed), blocks (whole "
        "residual blocks are removed), layers (whole layers of a transformer, with --resize-io with "
        "their caches), N:M such as 2:4, block:RxC such as block:1x4, tiles (groups of outputs read inputs of their "
        "own, and the zeros run faster), a mix such as channels+weights, channels+2:4 or "
        "channels+tiles, or joint (units, tiles and residual blocks compete by what they lose for what they save)",
    )
    unit_share: Annotated[Fraction, _WHAT] = Field(
        DEFAULT_UNIT_SHARE, gt=0, lt=1, description="of a mix: the share of the sparsity that whole units make up"
    )
    criterion: Annotated[str, _WHAT] = Field(
        "auto",
        description="how much a weight or a unit matters; onnxprune methods lists them; with --calibration auto is "
        "obc for units and block-influence for residual blocks, else magnitude",
    )
    allocation: Annotated[str, _WHAT] = Field(
        "auto",
        description="how layers compete: global (all ranked together), uniform, lamp or sensitivity (scanned on "
        "--calibration); weights also: erk; units also: cost (importance lost per cost saved) and measured "
        "(each group is cut alone on --calibration, made up for, and the outputs compared); auto is measured for units "
        "where --calibration is given, else cost, and lamp for weights, but for criteria that are made for global or "
        "uniform",
    )
    recover: Annotated[tuple[str, ...], BeforeValidator(_methods), Flag("Data", commas=True)] = Field(
        ("auto",),
        description="change the weights that are left so that outputs come back to the original's: auto (where "
        "--calibration is given), no, or methods",
    )
    effort: Annotated[Effort, _DATA] = Field(
        "low",
        description="time for recovery by auto: low fits weights in closed form; medium and high then align blocks "
        "with the original's by gradients, which needs PyTorch, and say beforehand how long that takes",
    )
    calibration_samples: Annotated[int, _DATA] = Field(
        1024, ge=1, description="use at most this many samples of --calibration (or of --data, which stand in for them)"
    )
    kinds: Annotated[Names, Flag("What goes", commas=True)] = Field(
        (),
        description=f"units to remove: {', '.join((*KINDS, *SHARING))} (default: all); heads are all of them, also "
        "where query heads share keys and values (kv-groups, query-heads); inspect says which there are",
    )
    allow_inexact: Annotated[bool, _WHAT] = Field(
        False, description="also remove units on axes that a normalisation runs over"
    )
    interface: Annotated[
        Literal["keep", "narrow"],
        BeforeValidator(
            lambda told: {True: "narrow", False: "keep"}.get(told, told) if isinstance(told, bool) else told
        ),
        Flag("What goes", name="resize-io", shown="", switch=True),
    ] = Field(
        "keep",
        description="let heads of a decoder's caches go: inputs and outputs of all caches become as narrow as the "
        "heads that are left (narrow), instead of keeping their extents (keep)",
    )
    round_to: Annotated[RoundTo, _WHAT] = Field(
        "auto",
        description="step of kept counts: auto (16 for Conv, 8 or more for wide layers), none or a number",
    )
    floor: Annotated[int, _WHAT] = Field(1, ge=1, description="no axis keeps fewer indices")
    exclude: Annotated[tuple[str, ...], _WHAT] = Field(
        (), description="leave weights or nodes alone whose name matches (* and ?)"
    )
    only: Annotated[tuple[str, ...], _WHAT] = Field((), description="prune only weights or nodes whose name matches")
    ends: Annotated[Literal["auto", "prune", "keep"], _WHAT] = Field(
        "auto", description="first and last layer: auto keeps them where they hold under 1 % of the weights"
    )
    remove_dead: Annotated[bool, _WHAT] = Field(
        False, description="afterwards remove units that the outputs do not depend on, exactly"
    )
    seed: Annotated[int, _RUN] = Field(0, ge=0, lt=2**32, description="of everything that is drawn at random")
    verify_by: Annotated[Literal["auto", "whole", "blocks"], _RUN] = Field(
        "auto",
        description="how models are run to verify the result: blocks (a few layers at a time, for models larger than "
        "the memory), whole, or auto: blocks above 512 MiB with weights in float32; a metric takes the whole model",
    )
    retrain: Annotated[
        TrainSettings | None, BeforeValidator(_by_default), Flag("Retrain", "Train the pruned model on --data.")
    ] = Field(None, description="train the pruned model on --data")
    retrain_last: TrainSettings | None = Field(
        None, description="the retraining after the last pruning, if it is to differ"
    )
    iterations: Annotated[int, _STEPS] = Field(
        1, ge=1, description="in how many steps to prune, each with statistics made anew (and retraining, recovery)"
    )
    schedule: Annotated[str, _STEPS] = Field(
        "exponential",
        description="sparsity after each step, or with a budget the share saved: one-shot, linear, exponential, cubic, "
        "or module:function",
    )
    initial_sparsity: Annotated[Gone, _STEPS] = Field(
        0.0, ge=0, lt=1, description="sparsity that the schedule starts from"
    )
    survivors: Annotated[Survivors, _TURNS] = Field(
        "lr-rewind",
        description="what the surviving weights retrain from; continue: where they are, one learning-rate schedule "
        "over all iterations; lr-rewind: where they are, the schedule starting anew each time (Renda et al. 2020); "
        "rewind: their values in a checkpoint (Frankle et al. 2019); reinit: new random values",
    )
    rewind_to: Annotated[Path | None, _TURNS] = Field(
        None, description="ONNX file with the weights that --survivors rewind goes back to"
    )
    alternate: Annotated[bool, _TURNS] = Field(
        False,
        description="each iteration in two halves: prune and retrain the fully connected layers with the convolutions "
        "fixed, then the reverse (Han et al. 2015, section 3.3)",
    )
    prune_every: Annotated[int | None, _TURNS] = Field(
        None,
        ge=1,
        description="prune while training instead of before it: every so many steps the sparsity rises along the "
        "schedule, and what goes is chosen from the weights as they are (Zhu and Gupta 2017, whose schedule is cubic)",
    )
    ramp: Annotated[Fraction, _TURNS] = Field(
        0.75, gt=0, le=1, description="share of the training over which the sparsity rises, with --prune-every"
    )
    shrink: Annotated[str, _TURNS] = Field(
        "no",
        description="before each pruning, train with a penalty on what is about to go: no, growing-l2 (Wang et al. "
        "2021), group-lasso (Wen et al. 2016), which sends whole units to zero, or module:function",
    )
    shrink_strength: Annotated[float, _TURNS] = Field(
        10.0, gt=0, description="strength of that penalty; it acts in proportion to the learning rate"
    )
    shrink_epochs: Annotated[int, _TURNS] = Field(3, ge=1, description="length of that training")
    reading: DataSettings = Field(default_factory=DataSettings, description="how --data and --eval-data are read")
    engine: Annotated[
        Literal["openvino", "tensorrt", "xnnpack"] | None, Flag("Deploy", "Zeros for an engine with kernels for them.")
    ] = Field(
        None,
        description="write what this engine's kernels for zeros need, and only that: openvino (int8 matrix products), "
        "tensorrt (2:4), xnnpack (1x1 convolutions); sets structure, quantize and allocation where they are left open, "
        "says which layers the engine will not use, and measures in openvino where it is installed",
    )
    quantize: Annotated[
        Literal["no", "int8", "int8-dynamic", "int4", "fp16"],
        Flag("Deploy", "int8, int8-dynamic, int4, fp16: after pruning."),
    ] = Field("no", description="after pruning; int8 needs inputs to calibrate on (--calibration or --eval-data)")
    pack: Annotated[
        Literal["no", "auto", "smallest", "gap8", "gap4", "bitmask"],
        Flag("Deploy", "Store zeros small, in standard ONNX."),
    ] = Field("no", description="store zeros small in standard operators that fold when a session loads")
    pack_values: Annotated[Literal["fp32", "fp16", "int8", "codebook16", "codebook256"], _DEPLOY] = Field(
        "fp32", description="what packed weights keep of their values; fp32 keeps every bit"
    )
    sparse_initializers: Annotated[bool, _DEPLOY] = Field(
        False, description="store zeros as ONNX sparse_initializer, which OpenVINO and full checks refuse: prefer pack"
    )
    require: Annotated[tuple[str, ...], Flag("Deploy", "Write only if this holds: latency<=0.6.")] = Field(
        (), description=f"write nothing unless this holds, such as latency<=0.6; of {', '.join(requirements.FIGURES)}"
    )
    accept_unproved: Annotated[bool, Flag("Deploy")] = Field(
        False,
        description="write the model although no inputs were found on which equal outputs prove that the cut is right",
    )

    @property
    def target(self) -> str | None:
        """Which field decides the sparsity by a search; None where the recipe says it."""
        return next((name for name in TARGETS if getattr(self, name) is not None), None)

    @property
    def parts(self) -> Parts:
        """The structure, read."""
        return parse_structure(self.structure)
