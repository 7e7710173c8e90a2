"""The Typer app and the entry point: which command runs, and what an error looks like."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn, get_args

import typer

from onnxprune.cli.console import complain
from onnxprune.cli.failures import sentence_of
from onnxprune.errors import OnnxPruneError
from onnxprune.recipe.recipe import Recipe

app = typer.Typer(
    name="onnxprune",
    help="Make an ONNX model smaller and faster: [b]onnxprune MODEL --sparsity 0.9[/b]",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEFAULT_COMMAND = "prune"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("onnxprune"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options before the command."""


def register() -> None:
    """Add every command to the app, once."""
    if app.registered_commands:
        return
    from onnxprune.cli import compare, inspect, methods, prune, run, sensitivity, unpack, verify

    for command in (prune, run, inspect, sensitivity, methods, verify, compare, unpack):
        command.register(app)


def _spell_out(arguments: list[str]) -> list[str]:
    """``--pack`` without a form means ``--pack auto``."""
    forms = get_args(Recipe.model_fields["pack"].annotation)
    following = [*arguments[1:], ""][: len(arguments)]
    return [
        "--pack=auto" if argument == "--pack" and after not in forms else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


INTERRUPTED = 130
"""What Typer returns after Ctrl-C, as a shell does: 128 + SIGINT."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit status.

    0: done and verified. 1: a stated limit or the verification failed, nothing written. 2: bad input. 130: Ctrl-C.
    """
    register()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {c.name for c in app.registered_commands}
    if arguments and arguments[0] not in commands and arguments[0] not in ("-h", "--help", "--version"):
        arguments.insert(0, DEFAULT_COMMAND)  # ``onnxprune MODEL`` prunes
    arguments = _spell_out(arguments)
    try:
        status = app(args=arguments, prog_name="onnxprune", standalone_mode=False)
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
        complain("stopped, no model was written; a run that retrains goes on with the same command and --resume")
    sys.exit(status if isinstance(status, int) else 0)
