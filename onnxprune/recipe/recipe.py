"""Recipe: the whole run as validated data. Flags, TOML files and Python arguments all build this object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from onnxprune.errors import RecipeError
from onnxprune.recipe import requirements
from onnxprune.recipe.contradictions import check_amount, check_structure, check_training
from onnxprune.recipe.fields import TARGETS, Ratio, target_of
from onnxprune.recipe.granularity import DEFAULT_UNIT_SHARE, NM, Parts, parse_structure
from onnxprune.recipe.training import DataSettings, Survivors, TrainSettings
from onnxprune.structure.groups import KINDS

RoundTo = Annotated[int, Field(ge=1)] | Literal["auto", "none"]

RETRAIN_ONLY = (
    "retrain_last", "survivors", "rewind_to", "alternate", "prune_every", "ramp", "shrink", "shrink_strength",
    "shrink_epochs", "reading",
)  # fmt: skip
"""Fields that mean something only where a run retrains."""

FLAGS = {
    ("retrain", "learning_rate"): "lr",
    ("retrain", "schedule"): "lr-schedule",
    ("reading", "size"): "image-size",
    ("reading", "scale"): "image-scale",
    ("reading", "target"): "target-column",
}
"""Settings whose flag has another name than their field: two settings may bear one name, two flags may not."""


def flag_name(section: str, field: str) -> str:
    """The flag of a field of the recipe (section "") or of the settings that it embeds."""
    return FLAGS.get((section, field), field.replace("_", "-"))


class Recipe(BaseModel):
    """Everything that decides what a run does to a model.

    The same model, recipe and seed give the same bytes, but for `target_latency`, which is measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sparsity: float = Field(0.0, ge=0, lt=1, description="share of prunable parameters that end up zero or gone")
    quality: float | None = Field(
        None,
        gt=0,
        description="instead of a share: weights below q standard deviations of their layer go (Han et al. 2015)",
    )
    target_latency: Ratio | None = Field(
        None, description="look for the sparsity at which the measured latency, after / before, is this: 0.5 or 0.5x"
    )
    target_macs: Ratio | None = Field(
        None, description="look for the sparsity at which at most this share of the multiply-adds is left"
    )
    target_size: Ratio | None = Field(
        None, description="look for the sparsity at which the file has at most this share of its bytes"
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        description="look for the highest sparsity at which the metric on --eval-data falls by at most this, in its "
        "own unit (0.01 is one point of accuracy)",
    )
    structure: str = Field(
        "weights",
        description="what goes: weights (single ones become zero), channels (whole units are removed), N:M such as "
        "2:4, block:RxC such as block:1x4, or a mix such as channels+weights or channels+2:4",
    )
    unit_share: float = Field(
        DEFAULT_UNIT_SHARE, gt=0, lt=1, description="of a mix: the share of the sparsity that whole units make up"
    )
    criterion: str = Field("magnitude", description="how much a weight or a unit matters; onnxprune methods lists them")
    allocation: str = Field(
        "auto",
        description="how layers compete: global (all ranked together), uniform, lamp or sensitivity (scanned on "
        "--calibration); weights also: erk; units also: cost (importance lost per cost saved); auto is global for "
        "weights and cost for units",
    )
    recover: tuple[str, ...] = Field(
        ("auto",),
        description="change the weights that are left so that outputs come back to the original's: auto (where "
        "--calibration is given), no, or methods",
    )
    calibration_samples: int = Field(
        1024, ge=1, description="so many samples of --calibration are looked at, at most (else of --data)"
    )
    kinds: tuple[str, ...] = Field((), description=f"units to remove: {', '.join(KINDS)} (default: all)")
    allow_inexact: bool = Field(False, description="also remove units on axes that a normalisation runs over")
    round_to: RoundTo = Field("auto", description="step of kept counts: auto (16 for Conv), none or a number")
    floor: int = Field(1, ge=1, description="no axis keeps fewer indices")
    exclude: tuple[str, ...] = Field((), description="leave weights or nodes alone whose name matches (* and ?)")
    only: tuple[str, ...] = Field((), description="prune only weights or nodes whose name matches")
    ends: Literal["auto", "prune", "keep"] = Field(
        "auto", description="first and last layer: auto keeps them where they hold under 1 % of the weights"
    )
    remove_dead: bool = Field(False, description="afterwards remove units that the outputs do not depend on, exactly")
    seed: int = Field(0, ge=0, lt=2**32, description="of everything that is drawn at random")
    retrain: TrainSettings | None = Field(None, description="train the pruned model on --data")
    retrain_last: TrainSettings | None = Field(
        None, description="The retraining after the last pruning, if it is to differ."
    )
    iterations: int = Field(
        1, ge=1, description="In how many steps to prune, each with statistics made anew (and retraining, recovery)."
    )
    schedule: str = Field(
        "exponential", description="Sparsity after each step: one-shot, linear, exponential, cubic, or module:function."
    )
    initial_sparsity: float = Field(0.0, ge=0, lt=1, description="Sparsity that the schedule starts from.")
    survivors: Survivors = Field(
        "lr-rewind",
        description="What the surviving weights retrain from. continue: where they are, one learning-rate schedule "
        "over all iterations. lr-rewind: where they are, the schedule starting anew each time (Renda et al. 2020). "
        "rewind: their values in a checkpoint (Frankle et al. 2019). reinit: new random values.",
    )
    rewind_to: Path | None = Field(None, description="ONNX file with the weights that `rewind` goes back to.")
    alternate: bool = Field(
        False,
        description="Each iteration in two halves: prune and retrain the fully connected layers with the convolutions "
        "fixed, then the reverse (Han et al. 2015, section 3.3).",
    )
    prune_every: int | None = Field(
        None,
        ge=1,
        description="Prune while training instead of before it: every so many steps the sparsity rises along the "
        "schedule, and what goes is chosen from the weights as they are (Zhu and Gupta 2017, whose schedule is cubic).",
    )
    ramp: float = Field(
        0.75, gt=0, le=1, description="Share of the training over which the sparsity rises, where prune_every is given."
    )
    shrink: Literal["no", "growing-l2", "group-lasso"] = Field(
        "no",
        description="Before each pruning, train with a penalty on what is about to go: growing-l2 (Wang et al. 2021) "
        "or group-lasso (Wen et al. 2016), which sends whole units to zero.",
    )
    shrink_strength: float = Field(
        10.0, gt=0, description="Strength of that penalty; it acts in proportion to the learning rate."
    )
    shrink_epochs: int = Field(3, ge=1, description="Length of that training.")
    reading: DataSettings = Field(default_factory=DataSettings, description="how --data and --eval-data are read")
    quantize: Literal["no", "int8", "int8-dynamic", "fp16"] = Field(
        "no", description="after pruning; int8 needs inputs to calibrate on (--calibration or --eval-data)"
    )
    pack: Literal["no", "auto", "smallest", "gap8", "gap4", "bitmask"] = Field(
        "no", description="store zeros small in standard operators that fold when a session loads"
    )
    pack_values: Literal["fp32", "fp16", "int8", "codebook16", "codebook256"] = Field(
        "fp32", description="what packed weights keep of their values; fp32 keeps every bit"
    )
    sparse_initializers: bool = Field(
        False, description="store zeros as ONNX sparse_initializer, which OpenVINO and full checks refuse: prefer pack"
    )
    require: tuple[str, ...] = Field(
        (), description=f"write nothing unless this holds, such as latency<=0.6; of {', '.join(requirements.FIGURES)}"
    )

    @field_validator("retrain", mode="before")
    @classmethod
    def _by_default(cls, retrain: Any) -> Any:
        """True means: with the default settings."""
        return {} if retrain is True else None if retrain is False else retrain

    @property
    def target(self) -> str | None:
        """Which field decides the sparsity by a search; None where the recipe says it."""
        return target_of(self)

    @property
    def parts(self) -> Parts:
        """The structure, read."""
        return parse_structure(self.structure)

    @field_validator("structure")
    @classmethod
    def _known_structure(cls, text: str) -> str:
        try:
            return parse_structure(text).text
        except RecipeError as error:
            raise ValueError(str(error)) from None

    @field_validator("recover", mode="before")
    @classmethod
    def _listed(cls, recover: Any) -> Any:
        """Methods may be written in a row, with commas."""
        if isinstance(recover, str):
            return tuple(part.strip() for part in recover.split(",") if part.strip())
        return recover

    @field_validator("recover")
    @classmethod
    def _auto_and_no_stand_alone(cls, recover: tuple[str, ...]) -> tuple[str, ...]:
        if not recover or (len(recover) > 1 and {"auto", "no"} & set(recover)):
            raise ValueError("give auto, no, or methods")
        return recover

    @model_validator(mode="before")
    @classmethod
    def _set_by_pattern(cls, settings: Any) -> Any:
        """N:M alone sets the sparsity; a sparsity beside it has to be the same."""
        if not isinstance(settings, Mapping):
            return settings
        try:
            parts = parse_structure(str(settings.get("structure", "")))
        except RecipeError:
            return settings
        others = any(settings.get(name) is not None for name in ("quality", *TARGETS))
        if parts.units or not isinstance(parts.zeros, NM) or others:
            return settings
        return {"sparsity": parts.zeros.sparsity, **settings}

    @model_validator(mode="after")
    def _belong_together(self) -> Recipe:
        check_amount(self)
        check_structure(self)
        for field in RETRAIN_ONLY if self.retrain is None else ():
            if getattr(self, field) != Recipe.model_fields[field].get_default(call_default_factory=True):
                raise ValueError(f"--{flag_name('', field)}: only with --retrain")
        check_training(self)
        return self

    @field_validator("kinds")
    @classmethod
    def _known_kinds(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"there are no units called {kind!r}; choose from {', '.join(KINDS)}")
        return kinds

    @field_validator("require")
    @classmethod
    def _known_limits(cls, require: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(requirements.parse(text)) for text in require)
        except RecipeError as error:
            raise ValueError(str(error)) from None

    @field_validator("sparse_initializers")
    @classmethod
    def _one_form(cls, sparse: bool, info: ValidationInfo) -> bool:
        if sparse and info.data.get("pack", "no") != "no":
            raise ValueError("zeros are stored as sparse_initializer or packed, not both")
        return sparse

    @field_validator("pack_values")
    @classmethod
    def _packed_values(cls, values: str, info: ValidationInfo) -> str:
        if values != "fp32" and info.data.get("pack") == "no":
            raise ValueError("values are packed only where pack is asked for")
        return values


def make_recipe(**settings: Any) -> Recipe:
    """Build a recipe.

    Raises:
        RecipeError: A setting is wrong; the message names it.
    """
    try:
        return Recipe(**settings)
    except ValidationError as error:
        raise RecipeError(sentence(error)) from None


def sentence(error: ValidationError) -> str:
    """The first thing that is wrong, under the name of its flag."""
    first = error.errors()[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return message
    scalar = not isinstance(first["input"], (Mapping, BaseModel))
    given = f" (not {first['input']!r})" if scalar and first["type"] not in ("missing", "extra_forbidden") else ""
    return f"--{_flag_of(first['loc'])}: {message[:1].lower()}{message[1:]}{given}"


def _flag_of(place: Sequence[int | str]) -> str:
    names = [part for part in place if isinstance(part, str)]
    section = "retrain" if names[0] == "retrain_last" else names[0]
    if section in ("retrain", "reading") and len(names) > 1:
        return flag_name(section, names[1])
    return flag_name("", names[0])
