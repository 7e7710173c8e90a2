"""``onnxprune sweep MODEL``: many settings side by side, as one table and one page."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxprune.cli.commands import ABOUT
from onnxprune.cli.console import console, print_json, stages
from onnxprune.cli.flags import with_flags
from onnxprune.cli.help import EverydayHelp, HelpAllFlag
from onnxprune.cli.invocation import Invocation
from onnxprune.cli.outputs import check_model, check_outputs
from onnxprune.errors import RecipeError, VerificationError
from onnxprune.recipe.requirements import Limit, parse

if TYPE_CHECKING:
    from onnxprune.pipeline.sweep import Sweep

_LEFT_OUT = frozenset(
    {"preset", "output", "checkpoint", "resume", "record", "report", "save_recipe", "verify", "dry_run", "require"}
)
"""Flags of ``prune`` that mean one run; limits are those of ``--pick`` here."""

Folder = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for results and page [MODEL.sweep].", show_default=False),
]
Pick = Annotated[
    list[str],
    typer.Option(help="Write the best model within a limit: latency<=0.5.", show_default=False),
]
Page = Annotated[bool, typer.Option("--page/--no-page", help="Write sweep.html into the folder.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sweep", cls=EverydayHelp, help=ABOUT["sweep"])(with_flags(sweep, leave_out=_LEFT_OUT))


def sweep(
    ctx: typer.Context,
    settings: dict[str, Any],
    invocation: Invocation,
    output: Folder = None,
    pick: Pick = [],  # noqa: B006
    page: Page = True,
    help_all: HelpAllFlag = False,
) -> None:
    """Prune with every combination of settings and compare what came out."""
    from onnxprune.pipeline.sweep import sweep as sweep_model
    from onnxprune.pipeline.sweep_folder import PAGE, PICKED
    from onnxprune.report.sweep import check_page, print_sweep, write_page

    if len(invocation.models) > 1:
        raise RecipeError("sweep: several models are named; sweep one at a time")
    model = invocation.model
    check_model(model)
    folder = output or model.with_name(f"{model.stem}.sweep")
    limits = _limits(pick)
    if page:
        check_page()
    if limits and folder.is_dir():
        picked = folder / PICKED
        check_outputs(invocation.reads, picked, {"--pick": picked.with_suffix(".json")}, force=invocation.force)
    with stages(str(model)) as tell:
        swept = sweep_model(
            model,
            folder,
            jobs=invocation.jobs,
            limits=[*map(str, limits)],
            progress=tell,
            **_keywords(invocation),
            **settings,
        )
        if all(trial.failed for trial in swept.trials):
            raise VerificationError(f"no setting gave a model: {swept.trials[0].label}: {swept.trials[0].failed}")
        if page:
            tell("page")
            write_page(swept, folder / PAGE)
        written = _write_picked(swept, limits, folder / PICKED, tell, force=invocation.force) if limits else None
    if invocation.json_output:
        files = {"page": str(folder / PAGE) if page else None, "picked": written}
        print_json("sweep", {**swept.as_dict(), "folder": str(folder), **files})
        return
    print_sweep(console, swept, page=folder / PAGE if page else None, picked=written)


def _keywords(invocation: Invocation) -> dict[str, Any]:
    from onnxprune.pipeline.sweep import RunKeywords

    return {field.name: getattr(invocation, field.name) for field in fields(RunKeywords)}


def _limits(texts: list[str]) -> list[Limit]:
    """The limits of the model to write.

    Raises:
        RecipeError: One cannot be read.
    """
    try:
        return [parse(part) for text in texts for part in text.split(",")]
    except RecipeError as error:
        raise RecipeError(f"--pick: {error}") from None


def _write_picked(swept: Sweep, limits: list[Limit], path: Path, tell: Any, *, force: bool) -> dict[str, str]:
    """Write the best model within the limits, and its record; return what JSON tells of it."""
    from onnxprune.pipeline.run import save
    from onnxprune.pipeline.sweep import pick

    trial, result = pick(swept, limits, progress=tell)
    save(result, path, force=force, record=path.with_suffix(".json"))
    return {"settings": trial.label, "command": trial.command, "output": str(path)}
