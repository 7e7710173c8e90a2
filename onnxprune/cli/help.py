"""Help that fits a screen: the flags of every day in a line each, all others under ``--help-all`` by subject."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from onnxprune.cli.flags import EVERYDAY

_ALL = "onnxprune.help_all"


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[_ALL] = True
        print(ctx.get_help(), end="")
        raise typer.Exit


HelpAllFlag = Annotated[
    bool, typer.Option("--help-all", callback=_show_all, is_eager=True, help="Show every flag and exit.")
]


class EverydayHelp(TyperCommand):
    """A command whose ``--help`` shows the flags of `EVERYDAY` alone, and ``--help-all`` all of them by subject."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        with _changed(self.params) as parameters:
            for parameter in parameters:
                if not ctx.meta.get(_ALL):
                    name, made = str(parameter.name), _is_made(parameter)
                    parameter.hidden = made and name not in EVERYDAY
                    parameter.help = EVERYDAY.get(name, parameter.help) if made else parameter.help
                    parameter.rich_help_panel = None
                    parameter.show_default = False
                elif parameter.param_type_name == "option":
                    parameter.rich_help_panel = parameter.rich_help_panel or "Run"
                    if isinstance(parameter.show_default, str):
                        parameter.help = f"{parameter.help} \\[default: {parameter.show_default}]"
                        parameter.show_default = False
            super().format_help(ctx, formatter)


def _is_made(parameter: Any) -> bool:
    """Whether it is made from a setting, and not part of one command: such a flag has a subject."""
    several = parameter.param_type_name == "argument" and parameter.nargs == -1
    return several or getattr(parameter, "rich_help_panel", None) is not None


@contextmanager
def _changed(parameters: list[Any]) -> Iterator[list[Any]]:
    """The parameters, which may be changed inside and are as before afterwards."""
    before = [dict(vars(parameter)) for parameter in parameters]
    try:
        yield list(parameters)
    finally:
        for parameter, attributes in zip(parameters, before, strict=True):
            vars(parameter).update(attributes)
