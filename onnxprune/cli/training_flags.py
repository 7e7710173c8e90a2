"""The flags of retraining, made from the settings' own help texts, so that no setting lacks its flag.

`with_training_flags` puts them into a command's signature in the place of its parameter `training`, which gets what was
given as a dict by flag; `training_settings` turns that into arguments of `Recipe`.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from onnxprune.errors import RecipeError
from onnxprune.recipe.recipe import RETRAIN_ONLY, Recipe, flag_name
from onnxprune.recipe.training import DataSettings, TrainSettings

Given = Mapping[str, Any]


@dataclass(frozen=True)
class Flag:
    """One setting on the command line.

    Attributes:
        section: The recipe's field that holds the settings; "" for a field of the recipe itself.
        name: The field.
        field: Its type, default and help text.
        panel: The heading that `--help` lists it under.
    """

    section: str
    name: str
    field: FieldInfo
    panel: str

    @property
    def parameter(self) -> str:
        """The name as a Python argument."""
        return flag_name(self.section, self.name).replace("-", "_")


_SECTIONS: Mapping[str, type[BaseModel]] = {"": Recipe, "retrain": TrainSettings, "reading": DataSettings}
_OPTIMISER = (
    "optimizer", "learning_rate", "momentum", "schedule", "warmup", "clip", "l1", "l2", "weight_decay", "dropout",
    "batch_norm", "ema", "precision", "device",
)  # fmt: skip
_ELSEWHERE = ("seed", "metric")  # flags of the whole run
_PLAIN = ("retrain_last", "reading")  # settings of their own, in Python and recipe files


def _flags() -> Iterator[Flag]:
    train = {name: field for name, field in TrainSettings.model_fields.items() if name not in _ELSEWHERE}
    for name, field in train.items():
        if name not in _OPTIMISER:
            yield Flag("retrain", name, field, "Retrain")
    for name in RETRAIN_ONLY:
        if name not in _PLAIN:
            yield Flag("", name, Recipe.model_fields[name], "Retrain: pruning and training in turns")
    for name in _OPTIMISER:
        yield Flag("retrain", name, train[name], "Retrain: optimiser and regularisation")
    for name, field in DataSettings.model_fields.items():
        yield Flag("reading", name, field, "Retrain: reading images and tables")


FLAGS: tuple[Flag, ...] = tuple(_flags())


def with_training_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for every setting instead of its parameter `training`."""
    signature = inspect.signature(command, eval_str=True)
    made = [
        inspect.Parameter(
            flag.parameter, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=_annotation(flag)
        )
        for flag in FLAGS
    ]
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += made if parameter.name == "training" else [parameter]

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        given = {flag.parameter: arguments.pop(flag.parameter, None) for flag in FLAGS}
        command(**arguments, training={name: value for name, value in given.items() if value not in (None, [])})

    hints = {parameter.name: parameter.annotation for parameter in parameters}
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {**hints, "return": None}
    return wrapper


def training_settings(retrain: bool, given: Given) -> dict[str, Any]:
    """Arguments of `Recipe` for the flags that were given.

    Raises:
        RecipeError: A flag of retraining without ``--retrain``.
    """
    sections: dict[str, dict[str, Any]] = {"": {}, "retrain": {}, "reading": {}}
    for flag in FLAGS:
        if flag.parameter not in given:
            continue
        if not retrain:
            raise RecipeError(f"--{flag_name(flag.section, flag.name)}: only with --retrain")
        value = given[flag.parameter]
        sections[flag.section][flag.name] = re.split(r"[,x]", value) if _is_numbers(flag.field) else value
    own = sections[""]
    if retrain:
        own["retrain"] = sections["retrain"]
    return own | ({"reading": sections["reading"]} if sections["reading"] else {})


def _annotation(flag: Flag) -> Any:
    """What Typer reads: the flag's type, name and help; None stands for a flag that is not given."""
    plain = _type_of(flag.field)
    name = f"--{flag_name(flag.section, flag.name)}"
    if plain is bool and flag.field.default:
        name = f"{name}/--no-{name[2:]}"
    option = typer.Option(name, help=_help(flag.field), show_default=_default(flag.field), rich_help_panel=flag.panel)
    return Annotated[list[str] | None if plain is list else plain | None, option]


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    choices = [c for c in get_args(_without_none(field.annotation)) if isinstance(c, str)]
    named = all(choice in text for choice in choices)
    return text if named else f"{text.rstrip('.')}: {', '.join(choices)}."


def _default(field: FieldInfo) -> str | bool:
    default = field.get_default(call_default_factory=True)
    if default is None or default == () or isinstance(default, bool):
        return False
    if isinstance(default, tuple):
        return ",".join(f"{part:g}" for part in default)
    return f"{default:.4g}" if isinstance(default, float) else str(default)


def _type_of(field: FieldInfo) -> Any:
    """The type that Typer converts to: numbers in a row and choices stay text, which the settings check."""
    plain = _without_none(field.annotation)
    if get_origin(plain) is tuple:
        return str if _is_numbers(field) else list
    if get_origin(plain) is Literal:
        return str
    return plain


def _is_numbers(field: FieldInfo) -> bool:
    """Whether the setting is a row of numbers, written with commas (or 224x224)."""
    plain = _without_none(field.annotation)
    return get_origin(plain) is tuple and _without_none(get_args(plain)[0]) is not str


def _without_none(annotation: Any) -> Any:
    """``Annotated[float, ...] | None`` as ``float``."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


DATA = typer.Option(
    "--data",
    help="What to train on: .npz with arrays named as the inputs, and label; .csv; a folder of images by class; or "
    "module:function.",
    show_default=False,
    rich_help_panel="Retrain",
)
RETRAIN = typer.Option("--retrain", help="Train the pruned model on --data.", rich_help_panel="Retrain")
CHECKPOINT = typer.Option(
    "--checkpoint",
    help="Folder for the state of the run; the one beside the output is removed at the end.",
    show_default="OUTPUT.checkpoint",
    rich_help_panel="Retrain",
)
RESUME = typer.Option(
    "--resume", help="Go on with a run that was interrupted, from its checkpoint.", rich_help_panel="Retrain"
)
DataFlag = Annotated[Path | None, DATA]
RetrainFlag = Annotated[bool, RETRAIN]
CheckpointFlag = Annotated[Path | None, CHECKPOINT]
ResumeFlag = Annotated[bool, RESUME]
