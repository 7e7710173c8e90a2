"""One model of ``onnxprune MODEL``: prune it, verify it, write what was asked for, tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from onnxprune.cli.console import console, print_json, stages
from onnxprune.cli.flags import save_settings
from onnxprune.cli.invocation import Invocation
from onnxprune.cli.outputs import RECIPE_FILE, check_folder_of_state, check_outputs
from onnxprune.errors import VerificationError
from onnxprune.model_io.atomic import together
from onnxprune.pipeline.run_folder import ensure_usable, folder_of, forget, is_main
from onnxprune.plugins import file_of
from onnxprune.recipe.recipe import Recipe

if TYPE_CHECKING:
    from onnxprune.pipeline.result import Result
    from onnxprune.report.next_steps import Files


_LARGE = 512 << 20  # bytes


def ensure_writable(ctx: typer.Context, recipe: Recipe, invocation: Invocation) -> None:
    """Refuse outputs that cannot be written."""
    from onnxprune.pipeline.runtime_settings import check_beside, files_beside

    reads = _reads(ctx, recipe, invocation)
    check_outputs(reads, invocation.target, invocation.writes_beside, force=invocation.force)
    if recipe.interface == "narrow" and invocation.target is not None:
        check_beside(invocation.target, files_beside(invocation.model), force=invocation.force)


def _reads(ctx: typer.Context, recipe: Recipe, invocation: Invocation) -> dict[str, Path | None]:
    other = {"the recipe": ctx.meta.get(RECIPE_FILE), "the model of --rewind-to": recipe.rewind_to}
    other["the tokenizer"] = recipe.reading.tokenizer
    named = {*_texts(recipe.model_dump(mode="json")), *_texts(invocation.model_dump(mode="json"))}
    modules = {f"the file of {name}": file_of(name) for name in sorted(named)}
    return {**invocation.reads, **other, **modules}


def _texts(value: Any) -> Iterator[str]:
    """All texts in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)


def prune_one(ctx: typer.Context, recipe: Recipe, invocation: Invocation) -> None:
    """Prune a model and write what was asked for. Of a run that missed a limit, all is written but the model."""
    from onnxprune.runtime.libraries import custom_operators

    folder = _state_folder(recipe, invocation)
    if folder is not None:
        check_folder_of_state(folder, _reads(ctx, recipe, invocation))
    with custom_operators(invocation.custom_ops), stages(invocation.name_of(invocation.model)) as tell:
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
        jobs=invocation.jobs,
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
    """The folder for the state of a run; None where it would hold nothing worth it, or nothing is to be written.

    Raises:
        RecipeError: It holds another run, or none to resume.
    """
    named = invocation.checkpoint is not None or invocation.resume
    long = recipe.retrain is not None or (recipe.target is None and _is_large(invocation))
    if not named and (invocation.dry_run or not long):
        return None
    folder = invocation.checkpoint or folder_of(invocation.named_target)
    ensure_usable(folder, resume=invocation.resume, restart=invocation.force)
    return folder


def _is_large(invocation: Invocation) -> bool:
    """Whether samples go through a model so large that a run takes long without any training."""
    if invocation.calibration is None:
        return False
    from onnxprune.model_io.external import data_files_of

    size = invocation.model.stat().st_size
    return size > _LARGE or size + sum(file.stat().st_size for file in data_files_of(invocation.model)) > _LARGE


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
        original = model_io.load(invocation.model)
        write_report(original, result, invocation.report, _files(invocation), sha256=written.get("sha256") or "")
        model_io.ensure_unchanged(result.model)  # the report is about the model that was pruned
    return written


def _files(invocation: Invocation) -> Files:
    """The files of the run, by the names that people know them by."""
    from onnxprune.report.next_steps import Files

    data = {name: getattr(invocation, name) for name in ("calibration", "eval_data", "data")}
    output = None if invocation.target is None else invocation.name_of(invocation.target)
    told = {name: str(path) for name, path in data.items() if path is not None}
    return Files(invocation.name_of(invocation.model), output, **told)


def _tell(result: Result, invocation: Invocation, written: dict[str, Any]) -> None:
    model = invocation.name_of(invocation.model)
    if invocation.json_output:
        settings = result.recipe.model_dump(mode="json")
        print_json("prune", {"model": model, **written, "recipe": settings, **result.figures})
    else:
        from onnxprune.report.console import print_result

        output = None if invocation.target is None else invocation.name_of(invocation.target)
        print_result(console, model, output, result)
