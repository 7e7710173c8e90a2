"""``onnxprune MODEL``: prune, verify, write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxprune.cli.console import console, print_json, stages
from onnxprune.cli.help import EverydayHelp, HelpAllFlag
from onnxprune.cli.outputs import check_outputs
from onnxprune.cli.run import apply_preset, given_amount, save_settings
from onnxprune.cli.training_flags import (
    CheckpointFlag,
    DataFlag,
    Given,
    ResumeFlag,
    RetrainFlag,
    training_settings,
    with_training_flags,
)
from onnxprune.model_io.atomic import together
from onnxprune.pipeline.run_folder import ensure_usable, folder_of, forget, is_main
from onnxprune.recipe.fields import TARGETS
from onnxprune.recipe.file import PRESETS
from onnxprune.recipe.recipe import Recipe, make_recipe

if TYPE_CHECKING:
    from onnxprune.pipeline.result import Result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prune", cls=EverydayHelp, help="Prune a model (the command that runs when none is named).")(prune)


def _about(name: str) -> str:
    text = Recipe.model_fields[name].description or ""
    return text[:1].upper() + text[1:] + "."


@with_training_flags
def prune(
    ctx: typer.Context,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The .onnx file; it is never changed.", show_default=False)
    ],
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", help=_about("sparsity"), show_default=False)
    ] = None,
    quality: Annotated[float | None, typer.Option(help=_about("quality"), show_default=False)] = None,
    target_latency: Annotated[str | None, typer.Option(help=_about("target_latency"), show_default=False)] = None,
    target_macs: Annotated[str | None, typer.Option(help=_about("target_macs"), show_default=False)] = None,
    target_size: Annotated[str | None, typer.Option(help=_about("target_size"), show_default=False)] = None,
    max_drop: Annotated[float | None, typer.Option(help=_about("max_drop"), show_default=False)] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            callback=apply_preset,
            is_eager=True,
            help=f"Settings for an aim: {', '.join(PRESETS)}; flags win over it.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write [MODEL.pruned.onnx].", show_default=False)
    ] = None,
    structure: Annotated[str, typer.Option(help=_about("structure"))] = "weights",
    criterion: Annotated[str, typer.Option(help=_about("criterion"))] = "magnitude",
    allocation: Annotated[str, typer.Option(help=_about("allocation"))] = "auto",
    unit_share: Annotated[float, typer.Option(help=_about("unit_share"))] = 0.5,
    kinds: Annotated[str, typer.Option(help=_about("kinds"), show_default=False)] = "",
    allow_inexact: Annotated[bool, typer.Option("--allow-inexact", help=_about("allow_inexact"))] = False,
    round_to: Annotated[str, typer.Option(help=_about("round_to"))] = "auto",
    floor: Annotated[int, typer.Option(help=_about("floor"))] = 1,
    exclude: Annotated[list[str], typer.Option(help=_about("exclude"), show_default=False)] = [],  # noqa: B006
    only: Annotated[list[str], typer.Option(help=_about("only"), show_default=False)] = [],  # noqa: B006
    ends: Annotated[str, typer.Option(help=_about("ends"))] = "auto",
    remove_dead: Annotated[bool, typer.Option("--remove-dead", help=_about("remove_dead"))] = False,
    iterations: Annotated[int, typer.Option(help=_about("iterations"))] = 1,
    schedule: Annotated[str, typer.Option(help=_about("schedule"))] = "exponential",
    initial_sparsity: Annotated[float, typer.Option(help=_about("initial_sparsity"))] = 0.0,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Inputs (.npz by input name; label where there are labels) for criteria that look at data, for "
            "--allocation sensitivity and --quantize int8; they turn on --recover, which changes the weights that are "
            "left.",
            show_default=False,
        ),
    ] = None,
    calibration_samples: Annotated[int, typer.Option(help=_about("calibration_samples"))] = 1024,
    recover: Annotated[str, typer.Option(help=_about("recover"))] = "auto",
    eval_data: Annotated[
        Path | None,
        typer.Option(help="Labelled inputs to measure the metric on: .npz, or as --data.", show_default=False),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="accuracy, top5 or mse, with --retrain also agreement or module:function; else what fits the data.",
            show_default=False,
        ),
    ] = None,
    retrain: RetrainFlag = False,
    data: DataFlag = None,
    checkpoint: CheckpointFlag = None,
    resume: ResumeFlag = False,
    training: Given = {},  # noqa: B006
    quantize: Annotated[str, typer.Option(help=_about("quantize"))] = "no",
    pack: Annotated[str, typer.Option(help=_about("pack"))] = "no",
    pack_values: Annotated[str, typer.Option(help=_about("pack_values"))] = "fp32",
    sparse_initializers: Annotated[
        bool, typer.Option("--sparse-initializers", help=_about("sparse_initializers"))
    ] = False,
    require: Annotated[list[str], typer.Option(help=_about("require"), show_default=False)] = [],  # noqa: B006
    record: Annotated[Path | None, typer.Option(help="Write what was done as JSON.", show_default=False)] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write one HTML page about the run.", show_default=False),
    ] = None,
    save_recipe: Annotated[
        Path | None,
        typer.Option(help="Write these flags as a file for onnxprune run.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help=_about("seed"))] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do and measure everything, write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    help_all: HelpAllFlag = False,
) -> None:
    """Prune a model, verify it in ONNX Runtime, write it."""
    recipe = make_recipe(
        **given_amount(ctx, ("sparsity", "quality", *TARGETS)),
        **training_settings(retrain, training),
        structure=structure,
        criterion=criterion,
        allocation=allocation,
        unit_share=unit_share,
        iterations=iterations,
        schedule=schedule,
        initial_sparsity=initial_sparsity,
        recover=recover,
        calibration_samples=calibration_samples,
        kinds=_names(kinds),
        allow_inexact=allow_inexact,
        round_to=_round_to(round_to),
        floor=floor,
        exclude=exclude,
        only=only,
        ends=ends,
        remove_dead=remove_dead,
        quantize=quantize,
        pack=pack,
        pack_values=pack_values,
        sparse_initializers=sparse_initializers,
        require=require,
        seed=seed,
    )
    run_recipe(
        ctx,
        model,
        recipe,
        output,
        training=Training(data, checkpoint, resume),
        eval_data=eval_data,
        metric=metric,
        calibration=calibration,
        record=record,
        report=report,
        save_recipe=save_recipe,
        as_json=json,
        dry_run=dry_run,
        force=force,
    )


@dataclass(frozen=True)
class Training:
    """What a retraining run is given beside its recipe."""

    data: Path | None = None
    checkpoint: Path | None = None
    resume: bool = False

    def folder(self, recipe: Recipe, target: Path, *, dry_run: bool, force: bool) -> Path | None:
        """The folder for the state; None where nothing is trained, or nothing is to be written.

        Raises:
            RecipeError: It holds another run, or none to resume.
        """
        if recipe.retrain is None or (dry_run and self.checkpoint is None and not self.resume):
            return None
        folder = self.checkpoint or folder_of(target)
        ensure_usable(folder, resume=self.resume, restart=force)
        return folder


def run_recipe(
    ctx: typer.Context,
    model: Path,
    recipe: Recipe,
    output: Path | None,
    *,
    training: Training = Training(),  # noqa: B008 (immutable)
    eval_data: Path | None,
    metric: str | None,
    calibration: Path | None = None,
    record: Path | None,
    report: Path | None,
    save_recipe: Path | None,
    as_json: bool,
    dry_run: bool,
    force: bool,
) -> None:
    """Run a recipe on a file and tell what came out."""
    from onnxprune.pipeline.run import prune as prune_model
    from onnxprune.pipeline.run import save
    from onnxprune.report.console import print_result

    target = output or model.with_name(f"{model.stem}.pruned.onnx")
    beside = {"--record": record, "--report": report, "--save-recipe": save_recipe}
    check_outputs(model, None if dry_run else target, beside, force=force)
    folder = training.folder(recipe, target, dry_run=dry_run, force=force)
    with stages(str(model)) as tell:
        result = prune_model(
            model,
            recipe,
            data=training.data,
            eval_data=eval_data,
            metric=metric,
            calibration=calibration,
            checkpoint=folder,
            resume=training.resume,
            progress=tell,
        )
        if not is_main():
            return
        written: dict[str, Any] = {"output": None}
        with together():
            if not dry_run:
                tell("save")
                file = save(result, target, force=force, record=record)
                written = {"output": file.file, "sha256": file.sha256}
            elif record is not None:
                result.record().save(record)
            if report is not None:
                tell("report")
                _report(model, result, report, None if dry_run else target)
            if save_recipe is not None:
                save_settings(ctx, prune, save_recipe, recipe)
        if folder is not None and training.checkpoint is None and not dry_run:
            forget(folder)
    if as_json:
        settings = recipe.model_dump(mode="json")
        print_json("prune", {"model": str(model), **written, "recipe": settings, **result.figures})
    else:
        print_result(console, str(model), None if dry_run else str(target), result)


def _report(model: Path, result: Result, path: Path, target: Path | None) -> None:
    from onnxprune import model_io
    from onnxprune.report.html import write_report

    output = None if target is None else str(target)
    write_report(model_io.load(model), result, path, model=str(model), output=output)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _round_to(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text
