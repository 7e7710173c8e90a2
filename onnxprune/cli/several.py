"""Several models in one run: patterns become files, and every output gets a name of its own in a folder."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from onnxprune.cli.invocation import IN_FOLDER, Invocation
from onnxprune.errors import ModelError, RecipeError
from onnxprune.recipe.flag import flag_name

_BESIDE = {"record": ".json", "report": ".html", "checkpoint": ""}
"""What is written beside a model, with the ending that its file gets in a folder."""


def one_by_one(invocation: Invocation) -> tuple[Invocation, ...]:
    """Return one invocation a model.

    ``-o`` may name a folder that exists; for several models, or a pattern, it has to be a folder, and is made where it
    is missing. The same holds for ``--record``, ``--report`` and ``--checkpoint`` of several models.

    Raises:
        ModelError: A pattern matches no file.
        RecipeError: Several models would be written into one file.
    """
    models = tuple(file for model in invocation.models for file in files_of(model))
    if len(models) == 1 and not any(map(_is_pattern, invocation.models)):
        output = invocation.output
        if output is not None and (output.name == IN_FOLDER or output.is_dir()):
            output = _folder("output", output) / models[0].name
        return (invocation.model_copy(update={"models": models, "output": output}),)
    if invocation.save_recipe is not None:
        raise RecipeError("--save-recipe: a recipe file is of one model, but several are named")
    names = [model.name for model in models]
    if invocation.output is not None and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RecipeError(
            f"--output: two models are called '{twice}', so one would replace the other: prune them apart"
        )
    return tuple(_alone(invocation, model) for model in models)


def makes_folders(invocation: Invocation) -> bool:
    """Whether folders that are named and missing are made: of several models, a pattern, or a name with a slash."""
    named = invocation.output is not None and invocation.output.name == IN_FOLDER
    return named or len(invocation.models) > 1 or any(map(_is_pattern, invocation.models))


def _is_pattern(model: Path) -> bool:
    return glob.has_magic(str(model)) and not model.exists()


def files_of(model: Path) -> Iterator[Path]:
    """The file itself, or those that a pattern matches: not every shell replaces patterns."""
    if not _is_pattern(model):
        yield model
        return
    matches = sorted(glob.glob(str(model), recursive=True))
    if not matches:
        raise ModelError(f"no file matches '{model}'")
    yield from map(Path, matches)


def _alone(invocation: Invocation, model: Path) -> Invocation:
    update: dict[str, object] = {"models": (model,)}
    if invocation.output is not None:
        update["output"] = _folder("output", invocation.output) / model.name
    for name, ending in _BESIDE.items():
        path = getattr(invocation, name)
        if path is not None:
            update[name] = _folder(name, path) / f"{model.stem}{ending}"
    return invocation.model_copy(update=update)


def _folder(setting: str, path: Path) -> Path:
    """The path of a folder.

    Raises:
        RecipeError: It is a file, or looks like one.
    """
    path = path.parent if path.name == IN_FOLDER else path
    if path.is_file() or path.suffix in (".onnx", ".json", ".html"):
        raise RecipeError(f"{flag_name(Invocation, setting)} '{path}': several models need a folder here")
    return path


def make_folders(invocations: tuple[Invocation, ...]) -> list[Path]:
    """Make the folders of outputs that are missing, where their parent is there; return those made."""
    made = []
    for invocation in invocations:
        for path in (invocation.target, invocation.record, invocation.report, invocation.checkpoint):
            if path is not None and not path.parent.exists() and path.parent.parent.is_dir():
                path.parent.mkdir()
                made.append(path.parent)
    return made
