"""The flags of a command, made from the fields of settings: type, default, help text and `Flag` of each.

`with_flags` puts them into a command's signature. The command gets what the flags say as arguments of `Recipe`, and as
an `Invocation`: what a run is given beside its recipe.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from onnxprune.cli.invocation import Invocation
from onnxprune.cli.words import number
from onnxprune.errors import RecipeError
from onnxprune.recipe.fields import AMOUNTS
from onnxprune.recipe.file import preset, save
from onnxprune.recipe.flag import SUBJECTS, Flag, flag_name, flag_of
from onnxprune.recipe.recipe import SECTIONS, Recipe

_NOT_SAVED = frozenset({"help_all", "save_recipe", "preset", "dry_run", "force", "json"})
_TABLES = "onnxprune.tables"
_INVOCATION = "invocation"


@dataclass(frozen=True)
class Setting:
    """One setting on the command line.

    Attributes:
        section: The recipe's field that holds it; "" for a field of the recipe, "invocation" for one of `Invocation`.
        name: The field.
        model: The class that has the field.
        field: Its type, default and help text.
        flag: How it is written.
    """

    section: str
    name: str
    model: type[BaseModel]
    field: FieldInfo
    flag: Flag

    @property
    def spelling(self) -> str:
        """The flag with its dashes."""
        return flag_name(self.model, self.name)

    @property
    def parameter(self) -> str:
        """The name as a Python argument, and as a key of a recipe file."""
        return self.spelling[2:].replace("-", "_")

    @property
    def is_path(self) -> bool:
        """Whether it names a file or folder, or several."""
        plain = _plain_type(self.field)
        return plain is Path or (get_origin(plain) is tuple and get_args(plain)[0] is Path)


def _plain_type(field: FieldInfo) -> Any:
    """``Annotated[float, ...] | None`` as ``float``; a choice between several types stays as it is."""
    arms = _arms(field.annotation)
    return arms[0] if len(arms) == 1 else Union[tuple(arms)]  # noqa: UP007


def _arms(annotation: Any) -> list[Any]:
    union = get_origin(annotation) in (Union, types.UnionType)
    arms = [arm for arm in (get_args(annotation) if union else (annotation,)) if arm is not type(None)]
    return [get_args(arm)[0] if get_origin(arm) is Annotated else arm for arm in arms]


def _is_read(field: FieldInfo) -> bool:
    """Whether the settings read a text: 0.5x."""
    inner = [part for arm in get_args(field.annotation) if get_origin(arm) is Annotated for part in get_args(arm)]
    return any(isinstance(part, BeforeValidator) for part in (*field.metadata, *inner))


def _settings() -> Iterator[Setting]:
    models: dict[str, type[BaseModel]] = {"": Recipe, **SECTIONS, _INVOCATION: Invocation}
    del models["retrain_last"]  # has no flags: those of retrain would be its too
    for section, model in models.items():
        for name, field in model.model_fields.items():
            flag = flag_of(field)
            if flag is not None:
                yield Setting(section, name, model, field, flag)


SETTINGS: tuple[Setting, ...] = tuple(
    sorted(_settings(), key=lambda s: (not s.flag.argument, SUBJECTS.index(s.flag.subject), not s.flag.everyday))
)
"""All settings that have a flag, in the order of help: by subject, those of every day first."""

EVERYDAY: Mapping[str, str] = {s.parameter: s.flag.everyday for s in SETTINGS if s.flag.everyday}
"""What ``prune --help`` shows, with a text that fits a line."""

PATHS = frozenset(s.parameter for s in SETTINGS if s.is_path)
"""Arguments and flags that are paths."""

LISTS_OF_PATHS = frozenset(s.parameter for s in SETTINGS if s.is_path and get_origin(_plain_type(s.field)) is tuple)
"""Those that may be given several times."""


def with_flags(command: Callable[..., None], *, leave_out: frozenset[str] = frozenset()) -> Callable[..., None]:
    """Return the command with a flag for every setting in the place of its parameters `settings` and `invocation`.

    Args:
        command: The command.
        leave_out: Flags that it has not, as Python writes them.
    """
    offered = [setting for setting in SETTINGS if setting.parameter not in leave_out]
    signature = inspect.signature(command, eval_str=True)
    kept = [p for p in signature.parameters.values() if p.name not in ("settings", _INVOCATION)]
    made = [
        inspect.Parameter(
            setting.parameter,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if setting.flag.argument else None,
            annotation=_annotation(setting),
        )
        for setting in offered
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept[:1]] + made
    parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept[1:]]

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        values = {s.parameter: arguments.pop(s.parameter) for s in offered}
        told = {name: value for name, value in values.items() if value not in (None, [])}
        invocation = Invocation(**{s.name: told[s.parameter] for s in offered if _is_told(s, _INVOCATION, told)})
        command(**arguments, settings=_arguments(arguments["ctx"], told), invocation=invocation)

    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {**{p.name: p.annotation for p in parameters}, "return": None}
    return wrapper


def _is_told(setting: Setting, section: str, told: Mapping[str, Any]) -> bool:
    return setting.section == section and setting.parameter in told


def _arguments(ctx: typer.Context, told: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Recipe`, from flags by parameter.

    Raises:
        RecipeError: A flag of retraining without ``--retrain``.
    """
    tables: dict[str, dict[str, Any]] = {name: dict(table) for name, table in ctx.meta.get(_TABLES, {}).items()}
    retrains = bool(told.get("retrain"))
    arguments: dict[str, Any] = {}
    for setting in SETTINGS:
        if setting.parameter not in told or setting.section == _INVOCATION or setting.name in AMOUNTS:
            continue
        value = told[setting.parameter]
        if setting.section == "retrain" and not retrains:
            raise RecipeError(f"{setting.spelling}: only with --retrain")
        if setting.section:
            tables.setdefault(setting.section, {})[setting.name] = value
        elif setting.name not in SECTIONS:
            arguments[setting.name] = value
    if retrains:
        tables.setdefault("retrain", {})
    return {**arguments, **tables, **_amount(ctx)}


def _amount(ctx: typer.Context) -> dict[str, Any]:
    """Return what says how much goes: what a flag says wins over what a recipe file or a preset says."""
    told = {name: ctx.params[name] for name in AMOUNTS if ctx.params[name] is not None}
    flags = [name for name in told if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    return {name: told[name] for name in flags} or told


# -- what Typer reads


def _annotation(setting: Setting) -> Any:
    """The flag's type, name and help; None stands for a flag that is not given."""
    field, flag = setting.field, setting.flag
    if flag.argument:
        name = f"{setting.parameter.upper()}..."
        return Annotated[list[Path], typer.Argument(metavar=name, help=_help(field), show_default=False)]
    value_type, name = _type(setting), setting.spelling
    if value_type is bool and field.default is True:
        name = f"{name}/--no-{name[2:]}"
    option = typer.Option(
        name,
        *([flag.short] if flag.short else []),
        help=_help(field),
        show_default=_default(setting),
        rich_help_panel=flag.subject,
        callback=_apply_preset if setting.name == "preset" else None,
        is_eager=setting.name == "preset",
        **({"metavar": "<path>"} if setting.is_path else number(value_type)),
    )
    return Annotated[list[str] | None if value_type is list else value_type | None, option]


def option(parameter: str, *, rare: bool = False) -> Any:
    """Return a flag of ``prune`` for a command that has only some of them.

    Args:
        parameter: The flag, as Python writes it.
        rare: Whether only ``--help-all`` shows it, in a command that has that.
    """
    setting = next(setting for setting in SETTINGS if setting.parameter == parameter)
    return typer.Option(
        setting.spelling,
        help=_help(setting.field),
        show_default=_default(setting) is not False,
        rich_help_panel=setting.flag.subject if rare else None,
        **number(_type(setting)),
    )


def _apply_preset(ctx: typer.Context, name: str | None) -> str | None:
    """Make the settings of a preset the defaults; recipe files and flags win over them."""
    ctx.default_map = dict(preset(name, ctx.default_map))
    return name


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    choices = [c for c in get_args(_plain_type(field)) if isinstance(c, str)]
    if not all(choice in text for choice in choices):
        text = f"{text.rstrip('.')}: {', '.join(choices)}"
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _default(setting: Setting) -> str | bool:
    default = setting.field.get_default(call_default_factory=True)
    if setting.flag.shown is not None:
        return setting.flag.shown or False
    if default is None or default == () or isinstance(default, bool):
        return False
    if isinstance(default, tuple):
        return ",".join(part if isinstance(part, str) else f"{part:g}" for part in default)
    return f"{default:.4g}" if isinstance(default, float) else str(default)


def _type(setting: Setting) -> Any:
    """The type that Typer converts to. What has a form of its own stays text, which the settings read and check."""
    value_type = _plain_type(setting.field)
    if setting.flag.switch:
        return bool
    if setting.section == "" and setting.name in SECTIONS:
        return bool
    if get_origin(value_type) is tuple:
        return str if setting.flag.commas or _is_read(setting.field) else list
    return value_type if value_type in (bool, int, float, Path) and not _is_read(setting.field) else str


InputsFlag = Annotated[Path | None, option("inputs")]
SampleAxisFlag = Annotated[list[str], option("sample_axis")]
ExcludeFlag = Annotated[list[str], option("exclude")]
OnlyFlag = Annotated[list[str], option("only")]
InputShapeFlag = Annotated[list[str], option("input_shape")]
TokenizerFlag = Annotated[Path | None, option("tokenizer", rare=True)]
SequenceLengthFlag = Annotated[int | None, option("sequence_length", rare=True)]
TextFlag = Annotated[str, option("text", rare=True)]
CustomOpsFlag = Annotated[list[Path], option("custom_ops")]
SeedFlag = Annotated[int, option("seed")]
VerifyByFlag = Annotated[str, option("verify_by", rare=True)]
JobsFlag = Annotated[int | None, option("jobs", rare=True)]


# -- recipe files


def put_tables(ctx: typer.Context, settings: Mapping[str, Any]) -> None:
    """Keep the tables of a recipe file, which no flag holds, for the command that runs it."""
    ctx.meta[_TABLES] = {name: settings[name] for name in SECTIONS if isinstance(settings.get(name), Mapping)}


def save_settings(ctx: typer.Context, path: Path, recipe: Recipe) -> None:
    """Write a recipe file with everything that flags, a recipe file or a preset decided."""
    decided = [
        name
        for name in ctx.params
        if name not in _NOT_SAVED and getattr(ctx.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT"
    ]
    fields = {name: value for name, value in recipe.model_dump(mode="json").items() if not isinstance(value, dict)}
    settings = {name: fields[name] if name in fields else _plain(ctx.params[name]) for name in decided}
    save(path, settings, paths=PATHS)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return str(value[0]) if len(value) == 1 and isinstance(value[0], Path) else [_plain(part) for part in value]
    return value if isinstance(value, (bool, int, float)) or value is None else str(value)
