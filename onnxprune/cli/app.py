"""The Typer app and the entry point: which command runs, and what an error looks like."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, NoReturn, get_args

import typer

from onnxprune.cli.commands import ABOUT
from onnxprune.cli.console import complain, set_volume, warnings_logged
from onnxprune.cli.failures import sentence_of
from onnxprune.cli.group import CommandGroup
from onnxprune.errors import OnnxPruneError


def _empty() -> typer.Typer:
    """An app without commands."""
    return typer.Typer(
        name="onnxprune",
        cls=CommandGroup,
        help="Make an ONNX model smaller and faster: [b]onnxprune MODEL --sparsity 0.9[/b]. "
        "[b]onnxprune MODEL[/b] alone looks at a model and proposes commands.",
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _empty()


def _version(wanted: bool) -> None:
    if wanted:
        from onnxprune.pipeline.version import version

        print(version())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only (anywhere on the line).")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log each stage with its time (anywhere on the line).")
    ] = False,
) -> None:
    """Options before the command."""
    set_volume(quiet=quiet, verbose=verbose)


def register() -> None:
    """Add every command to the app, once."""
    if app.registered_commands:
        return
    for name in ABOUT:
        importlib.import_module(f"onnxprune.cli.{name}").register(app)


def overview() -> typer.Typer:
    """Return an app that only shows which commands there are: flags of commands take long to make."""
    shown = _empty()
    shown.callback()(options)
    for name, about in ABOUT.items():
        shown.command(name, help=about)(_nothing)
    return shown


def _nothing() -> None:
    """Stand in for a command."""


def _spell_out(arguments: list[str]) -> list[str]:
    """``--pack`` without a form means ``--pack auto``."""
    if "--pack" not in arguments:
        return arguments
    from onnxprune.recipe.recipe import Recipe

    forms = get_args(Recipe.model_fields["pack"].annotation)
    following = [*arguments[1:], ""][: len(arguments)]
    return [
        "--pack=auto" if argument == "--pack" and after not in forms else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


_COMPLETES = "_ONNXPRUNE_COMPLETE"  # set where a shell asks what a line may go on with

INTERRUPTED = 130
"""What Typer returns after Ctrl-C, as a shell does: 128 + SIGINT."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit status.

    0: done and verified. 1: a stated limit or the verification failed, nothing written. 2: bad input. 130: Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    arguments = _spell_out(arguments or ["--help"])
    if arguments in (["--help"], ["-h"]) and _COMPLETES not in os.environ:
        chosen = overview()
    else:
        register()
        chosen = app
    try:
        with warnings_logged():
            status = chosen(args=arguments, prog_name="onnxprune", standalone_mode=False)
    except OnnxPruneError as error:
        complain(str(error))
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        complain(sentence)
        sys.exit(2)
    if status == INTERRUPTED:
        complain("stopped, no model was written; a run with a checkpoint goes on with the same command and --resume")
    sys.exit(status if isinstance(status, int) else 0)
