"""``onnxprune run recipe.toml``: what the flags of ``prune`` can say, read from a file; flags beside it win."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune.recipe.file import preset, read, save
from onnxprune.recipe.recipe import Recipe

_NOT_SAVED = frozenset({"help_all", "save_recipe", "preset", "dry_run", "force", "json"})


def register(app: typer.Typer) -> None:
    """Add the command."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("run", help="Prune as a recipe file says.", context_settings=settings)(run)


def run(
    ctx: typer.Context,
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE.toml [MODEL] [FLAGS]",
            help="The flags of prune as keys; MODEL and flags given here win over the file.",
            show_default=False,
        ),
    ],
) -> None:
    """Prune as a recipe file says."""
    from onnxprune.cli.prune import prune

    assert ctx.parent is not None
    group: Any = ctx.parent.command
    command = group.get_command(ctx.parent, "prune")
    options = {p.name: p for p in command.params}
    content = read(recipe, flags=options, paths=path_flags(prune))
    defaults = {name: _as_flag(options[name], value) for name, value in content.settings.items() if name in options}
    with command.make_context("prune", list(ctx.args), parent=ctx.parent, default_map=defaults) as inner:
        command.invoke(inner)


def apply_preset(ctx: typer.Context, name: str | None) -> str | None:
    """Make the settings of a preset the defaults; recipe files and flags win over them."""
    own = ctx.default_map or {}
    ctx.default_map = {**preset(name), **own}
    return name


def given_amount(ctx: typer.Context, names: Iterable[str]) -> dict[str, Any]:
    """Return what says how much goes: one that is given as a flag wins over those of a recipe file or a preset."""
    found = {name: ctx.params[name] for name in names if ctx.params[name] is not None}
    flags = [name for name in found if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    return {name: found[name] for name in flags} or found


def save_settings(ctx: typer.Context, command: Callable[..., None], path: Path, recipe: Recipe) -> None:
    """Write a recipe file with everything that flags, a recipe file or a preset decided."""
    decided = [
        name
        for name in ctx.params
        if name not in _NOT_SAVED and getattr(ctx.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT"
    ]
    own = recipe.model_dump(mode="json")
    flat = {name for name, value in own.items() if not isinstance(value, dict)}  # the others have flags of their own
    settings = {name: own[name] if name in flat else _plain(ctx.params[name]) for name in decided}
    save(path, settings, paths=path_flags(command))


def path_flags(command: Callable[..., None]) -> set[str]:
    """Return the arguments and flags of a command that are paths."""
    hints: Mapping[str, Any] = typing.get_type_hints(command)
    return {name for name, hint in hints.items() if hint is Path or Path in typing.get_args(hint)}


def _as_flag(option: Any, value: Any) -> Any:
    """Return a value of the file as the flag takes it: a list for a flag given once is separated by commas."""
    if isinstance(value, list) and not getattr(option, "multiple", False):
        return ",".join(map(str, value))
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float, list, tuple)) or value is None:
        return value
    return str(value)
