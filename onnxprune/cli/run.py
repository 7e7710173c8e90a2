"""``onnxprune run recipe.toml``: what the flags of ``prune`` can say, read from a file; flags beside it win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE.toml [MODEL] [FLAGS]",
            help="The flags of prune as keys; MODEL and flags given here, in any order, win over the file.",
            show_default=False,
        ),
    ],
) -> None:
    """Prune as a recipe file says."""
    assert ctx.parent is not None
    group: Any = ctx.parent.command
    command = group.get_command(ctx.parent, "prune")
    recipe, others = _recipe_among(words, command, ctx)
    ctx.meta[RECIPE_FILE] = recipe
    options = {p.name: p for p in command.params}
    fields = {setting.parameter: setting.field for setting in SETTINGS}
    content = read(recipe, flags=fields, paths=PATHS, lists=LISTS_OF_PATHS)
    put_tables(ctx, content.settings)
    defaults = {name: _as_flag(options[name], value) for name, value in content.settings.items() if name in options}
    with command.make_context("prune", others, parent=ctx.parent, default_map=defaults) as inner:
        command.invoke(inner)


def _recipe_among(words: Sequence[str], command: Any, ctx: typer.Context) -> tuple[Path, list[str]]:
    """The first word that is neither a flag nor a flag's value, and all others in their order.

    Raises:
        UsageError: There is none.
    """
    valued = {name for p in command.params if p.param_type_name == "option" and not p.is_flag for name in p.opts}
    after_valued = False
    for at, word in enumerate(words):
        if not after_valued and (word == "-" or not word.startswith("-")):
            return Path(word), [*words[:at], *words[at + 1 :]]
        after_valued = not after_valued and word in valued
    ctx.fail("RECIPE.toml is missing")


def _as_flag(option: Any, value: Any) -> Any:
    """Return a value of the file as the flag takes it: a list for a flag given once is separated by commas."""
    if getattr(option, "nargs", 1) == -1:
        return value if isinstance(value, list) else [value]
    if isinstance(value, list) and not getattr(option, "multiple", False):
        return ",".join(map(str, value))
    return True if isinstance(value, Mapping) else value
