"""Recipe: the whole run as validated data. Flags, TOML files and Python arguments all build this object."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from onnxprune import limits
from onnxprune.errors import RecipeError
from onnxprune.structure.groups import KINDS

RoundTo = Annotated[int, Field(ge=1)] | Literal["auto", "none"]


class Recipe(BaseModel):
    """Everything that decides what a run does to a model.

    The same model, recipe and seed give the same bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sparsity: float = Field(ge=0, lt=1, description="share of prunable parameters that end up zero or gone")
    structure: Literal["weights", "channels"] = Field(
        "weights", description="weights zeroes single weights, channels removes whole units of every kind"
    )
    criterion: str = Field("magnitude", description="how much a weight or a unit matters")
    scope: Literal["global", "layer"] = Field("global", description="rank all layers together, or cut each alike")
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
    seed: int = Field(0, ge=0, description="of everything that is drawn at random")
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
        (), description=f"write nothing unless this holds, such as latency<=0.6; of {', '.join(limits.FIGURES)}"
    )

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
            return tuple(str(limits.parse(text)) for text in require)
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
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "recipe"
        message = str(first["msg"]).removeprefix("Value error, ")
        given = "" if first["type"] in ("missing", "extra_forbidden") else f" (not {first['input']!r})"
        raise RecipeError(f"--{name.replace('_', '-')}: {message[:1].lower()}{message[1:]}{given}") from None
