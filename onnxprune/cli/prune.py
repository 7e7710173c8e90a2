"""``onnxprune MODEL``: prune, verify, write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from onnxprune.cli.console import complain, console, print_json, stages
from onnxprune.cli.first_look import first_look
from onnxprune.cli.flags import save_settings, with_flags
from onnxprune.cli.help import EverydayHelp, HelpAllFlag
from onnxprune.cli.invocation import Invocation
from onnxprune.cli.outputs import RECIPE_FILE, check_folder_of_state, check_model, check_outputs
from onnxprune.cli.several import make_folders, one_by_one
from onnxprune.cli.streams import STREAM, from_standard_input, to_standard_output
from onnxprune.errors import OnnxPruneError, RecipeError, VerificationError
from onnxprune.model_io.atomic import together
from onnxprune.pipeline.run_folder import ensure_usable, folder_of, forget, is_main
from onnxprune.recipe.recipe import Recipe, make_recipe

if TYPE_CHECKING:
    from onnxprune.pipeline.result import Result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prune", cls=EverydayHelp, help="Prune a model (the command that runs when none is named).")(prune)


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
    _prune_each(ctx, recipe, one_by_one(invocation))


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
        _prune_each(ctx, recipe, (invocation.model_copy(update={"models": (model,), "output": target}),))


def _prune_each(ctx: typer.Context, recipe: Recipe, invocations: tuple[Invocation, ...]) -> None:
    """Prune model after model. Of several, one that fails is told of, and the others go on."""
    for invocation in invocations:
        check_model(invocation.model)
    made = make_folders(invocations) if len(invocations) > 1 else []
    worst = 0
    try:
        for invocation in invocations:
            _check(ctx, recipe, invocation)
        for invocation in invocations:
            try:
                _prune_one(ctx, recipe, invocation)
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


def _check(ctx: typer.Context, recipe: Recipe, invocation: Invocation) -> None:
    """Refuse outputs that cannot be written."""
    from onnxprune.pipeline.runtime_settings import check_beside, files_beside

    reads = _reads(ctx, recipe, invocation)
    check_outputs(reads, invocation.target, invocation.writes_beside, force=invocation.force)
    if recipe.interface == "narrow" and invocation.target is not None:
        check_beside(invocation.target, files_beside(invocation.model), force=invocation.force)


def _reads(ctx: typer.Context, recipe: Recipe, invocation: Invocation) -> dict[str, Path | None]:
    other = {"the recipe": ctx.meta.get(RECIPE_FILE), "the model of --rewind-to": recipe.rewind_to}
    return {**invocation.reads, **other}


def _prune_one(ctx: typer.Context, recipe: Recipe, invocation: Invocation) -> None:
    from onnxprune.runtime.libraries import custom_operators

    folder = _state_folder(recipe, invocation)
    if folder is not None:
        check_folder_of_state(folder, _reads(ctx, recipe, invocation))
    with custom_operators(invocation.custom_ops), stages(str(invocation.model)) as tell:
        try:
            result = _pruned(recipe, invocation, folder, tell)
        except VerificationError as error:
            _keep_evidence(error, invocation, tell)
            raise
        if not is_main():
            return
        with together():
            written = _write(result, invocation, tell)
            if invocation.save_recipe is not None:
                save_settings(ctx, invocation.save_recipe, recipe)
        if folder is not None and invocation.checkpoint is None and not invocation.dry_run:
            forget(folder)
    _tell(result, invocation, written)


def _pruned(recipe: Recipe, invocation: Invocation, folder: Path | None, tell: Any) -> Result:
    from onnxprune.pipeline.run import prune as prune_model

    return prune_model(
        invocation.model,
        recipe,
        data=invocation.data,
        eval_data=invocation.eval_data,
        metric=invocation.metric,
        calibration=invocation.calibration,
        inputs=invocation.inputs,
        checkpoint=folder,
        resume=invocation.resume,
        verification=invocation.verification,
        progress=tell,
    )


def _keep_evidence(error: VerificationError, invocation: Invocation, tell: Any) -> None:
    """Of a run that missed a limit, write all that was asked for but the model: the record, the report, the JSON."""
    if error.result is None or not is_main():
        return
    with together():
        written = _write(error.result, invocation.model_copy(update={"dry_run": True}), tell)
    if invocation.json_output:
        _tell(error.result, invocation, {**written, "missed": str(error)})


def _state_folder(recipe: Recipe, invocation: Invocation) -> Path | None:
    """The folder for the state of a training; None where nothing is trained, or nothing is to be written.

    Raises:
        RecipeError: It holds another run, or none to resume.
    """
    wanted = invocation.checkpoint is not None or invocation.resume or not invocation.dry_run
    if recipe.retrain is None or not wanted:
        return None
    folder = invocation.checkpoint or folder_of(invocation.named_target)
    ensure_usable(folder, resume=invocation.resume, restart=invocation.force)
    return folder


def _write(result: Result, invocation: Invocation, tell: Any) -> dict[str, Any]:
    """Write the model, its record and the report, as far as they are asked for; what JSON tells of the model."""
    from onnxprune.pipeline.run import save

    written: dict[str, Any] = {"output": None}
    if invocation.target is not None:
        tell("save")
        file = save(result, invocation.target, force=invocation.force, record=invocation.record)
        written = {"output": file.file, "sha256": file.sha256}
    elif invocation.record is not None:
        result.record().save(invocation.record)
    if invocation.report is not None:
        from onnxprune import model_io
        from onnxprune.report.html import write_report

        tell("report")
        output = None if invocation.target is None else str(invocation.target)
        original = model_io.load(invocation.model)
        write_report(original, result, invocation.report, model=str(invocation.model), output=output)
        model_io.ensure_unchanged(result.model)  # the report is about the model that was pruned
    return written


def _tell(result: Result, invocation: Invocation, written: dict[str, Any]) -> None:
    if invocation.json_output:
        settings = result.recipe.model_dump(mode="json")
        print_json("prune", {"model": str(invocation.model), **written, "recipe": settings, **result.figures})
    else:
        from onnxprune.report.console import print_result

        output = None if invocation.target is None else str(invocation.target)
        print_result(console, str(invocation.model), output, result)
