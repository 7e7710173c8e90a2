"""``onnxprune run recipe.toml``: what the flags of ``prune`` can say, read from a file; flags beside it win."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune.cli.commands import ABOUT
from onnxprune.cli.flags import LISTS_OF_PATHS, PATHS, SETTINGS, put_tables
from onnxprune.cli.outputs import RECIPE_FILE
from onnxprune.recipe.file import read


def register(app: typer.Typer) -> None:
    """Add the command."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("run", help=ABOUT["run"], context_settings=settings)(run)


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
    assert ctx.parent is not None
    ctx.meta[RECIPE_FILE] = recipe
    group: Any = ctx.parent.command
    command = group.get_command(ctx.parent, "prune")
    options = {p.name: p for p in command.params}
    fields = {setting.parameter: setting.field for setting in SETTINGS}
    content = read(recipe, flags=fields, paths=PATHS, lists=LISTS_OF_PATHS)
    put_tables(ctx, content.settings)
    defaults = {name: _as_flag(options[name], value) for name, value in content.settings.items() if name in options}
    with command.make_context("prune", list(ctx.args), parent=ctx.parent, default_map=defaults) as inner:
        command.invoke(inner)


def _as_flag(option: Any, value: Any) -> Any:
    """Return a value of the file as the flag takes it: a list for a flag given once is separated by commas."""
    if getattr(option, "nargs", 1) == -1:
        return value if isinstance(value, list) else [value]
    if isinstance(value, list) and not getattr(option, "multiple", False):
        return ",".join(map(str, value))
    return True if isinstance(value, Mapping) else value
