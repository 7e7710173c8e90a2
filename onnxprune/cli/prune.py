"""``onnxprune MODEL``: prune, verify, write."""

from __future__ import annotations

from typing import Any

import typer

from onnxprune.cli.commands import ABOUT
from onnxprune.cli.console import complain
from onnxprune.cli.first_look import first_look
from onnxprune.cli.flags import with_flags
from onnxprune.cli.help import EverydayHelp, HelpAllFlag
from onnxprune.cli.invocation import Invocation
from onnxprune.cli.one_model import ensure_writable, prune_one
from onnxprune.cli.outputs import RECIPE_FILE, check_model
from onnxprune.cli.several import make_folders, makes_folders, one_by_one
from onnxprune.cli.streams import STREAM, from_standard_input, to_standard_output
from onnxprune.errors import OnnxPruneError, RecipeError
from onnxprune.recipe.recipe import Recipe, make_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prune", cls=EverydayHelp, help=ABOUT["prune"])(prune)


@with_flags
def prune(ctx: typer.Context, settings: dict[str, Any], invocation: Invocation, help_all: HelpAllFlag = False) -> None:
    """Prune a model, verify it in ONNX Runtime, write it."""
    if _is_bare(ctx, settings, invocation):
        first_look(invocation, settings)
        return
    recipe = make_recipe(**settings)
    if STREAM in (*invocation.models, invocation.output):
        _prune_stream(ctx, recipe, invocation)
        return
    _prune_each(ctx, recipe, one_by_one(invocation), folders=makes_folders(invocation))


def _is_bare(ctx: typer.Context, settings: dict[str, Any], invocation: Invocation) -> bool:
    """Whether nothing but a model was named, so that nothing says how much is to go."""
    told = {*settings, *invocation.model_fields_set}
    look = {"models", "inputs", "custom_ops", "reading", "json_output"}
    return told <= look and RECIPE_FILE not in ctx.meta and len(invocation.models) == 1


def _prune_stream(ctx: typer.Context, recipe: Recipe, invocation: Invocation) -> None:
    """Prune a model of standard input, or to standard output.

    Raises:
        RecipeError: There is more than one model, or no name for the output.
    """
    if len(invocation.models) > 1:
        raise RecipeError("-: standard input and standard output are of one model, but several are named")
    if invocation.output is None and not invocation.dry_run:
        raise RecipeError("-: a model of standard input needs a name for its output: -o FILE, or -o - for a stream")
    output = to_standard_output(invocation.output, json=invocation.json_output)
    with from_standard_input(invocation.model) as model, output as target:
        called = {model: "standard input" if invocation.model == STREAM else str(model)}
        if target is not None:
            called[target] = "standard output" if invocation.output == STREAM else str(target)
        update = {"models": (model,), "output": target, "called": called}
        _prune_each(ctx, recipe, (invocation.model_copy(update=update),))


def _prune_each(
    ctx: typer.Context, recipe: Recipe, invocations: tuple[Invocation, ...], *, folders: bool = False
) -> None:
    """Prune model after model. Of several, one that fails is told of, and the others go on."""
    for invocation in invocations:
        check_model(invocation.model)
    made = make_folders(invocations) if folders else []
    worst = 0
    try:
        for invocation in invocations:
            ensure_writable(ctx, recipe, invocation)
        for invocation in invocations:
            try:
                prune_one(ctx, recipe, invocation)
            except OnnxPruneError as error:
                if len(invocations) == 1:
                    raise
                complain(str(error) if str(invocation.model) in str(error) else f"'{invocation.model}': {error}")
                worst = max(worst, error.exit_status)
    finally:
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
    if worst:
        raise typer.Exit(worst)
