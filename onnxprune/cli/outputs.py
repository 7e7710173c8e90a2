"""The files that a run writes: refused before any work is done where they could not be written at its end."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from onnxprune.errors import ModelError, RecipeError
from onnxprune.model_io.paths import is_no_file, real_path

RECIPE_FILE = "onnxprune.recipe_file"
"""Key, in what a command line's contexts share, of the recipe file that `onnxprune run` reads."""


def check_model(path: Path) -> None:
    """Refuse a path that is no file.

    Raises:
        ModelError: It does not exist, or is a folder or a device.
    """
    if not path.is_file():
        if not path.exists():
            raise ModelError(f"the model '{path}' does not exist")
        raise ModelError(f"'{path}' is {'a folder, ' if path.is_dir() else ''}not a file: give an .onnx file")


def check_outputs(
    inputs: Mapping[str, Path | None], target: Path | None, beside: Mapping[str, Path | None], *, force: bool
) -> None:
    """Refuse an output that exists, cannot be written, or would replace another file of the run.

    What a killed run left in the folders of the outputs is put right first.

    Args:
        inputs: What is read, by what messages call it: "the model", "--eval-data", ...; None where it is not given.
        target: Where the pruned model goes; None where none is written.
        beside: What else is written, by flag; None where it was not asked for.
        force: Whether an output may replace a file that is none of the inputs.

    Raises:
        ModelError: A file exists, or cannot be written.
        RecipeError: Two files of the run are one.
    """
    from onnxprune import model_io
    from onnxprune.model_io.file_set import tidy

    input_paths = {what: path for what, path in inputs.items() if path is not None}
    outputs = {flag: path for flag, path in {"--output": target, **beside}.items() if path is not None}
    for folder in {path.parent for path in outputs.values()}:
        tidy(folder)
    taken: dict[Path, str] = {}
    for flag, path in outputs.items():
        _check_place(f"{flag} ", path)
        what = _what_it_is(path, input_paths)
        if what is not None:
            raise RecipeError(f"{flag} '{path}' is {what} itself, which is never changed: choose another name")
        if real_path(path) in taken:
            raise RecipeError(f"{flag} '{path}' is {taken[real_path(path)]} itself: choose another name")
        if path is target:
            model_io.check_output(path, force=force)
        elif os.path.lexists(path) and not force:
            raise ModelError(f"{flag} '{path}' exists already: use --force to replace it, or choose another name")
        taken[real_path(path)] = "the output" if path is target else f"the file of {flag}"
    if beside.get("--report") is not None and importlib.util.find_spec("jinja2") is None:
        raise RecipeError("--report needs jinja2: pip install 'onnxprune[report]'")


def check_folder_of_state(folder: Path, inputs: Mapping[str, Path | None]) -> None:
    """Refuse a folder for the state of a run in which a file lies that the run reads: the state is removed at its end.

    Raises:
        RecipeError: Names the file.
    """
    for what, path in inputs.items():
        if path is not None and path.exists() and _is_below(path, folder):
            raise RecipeError(
                f"'{path}', {what}, lies in the folder '{folder}' for the state of the run: name another with "
                "--checkpoint, or move the file"
            )


def _what_it_is(path: Path, inputs: Mapping[str, Path]) -> str | None:
    """What a path is of the things that are read, whichever name or link it bears; None where it is none of them."""
    from onnxprune.model_io.external import data_files_of

    if path.exists():
        for what, source in inputs.items():
            if source.exists() and (path.samefile(source) or (source.is_dir() and _is_below(path, source))):
                return what if path.samefile(source) else f"a file of {what}"
        for what, source in inputs.items():
            if what.startswith("the model") and any(path.samefile(file) for file in data_files_of(source)):
                return f"the external data of {what}"
    return next((what for what, source in inputs.items() if real_path(path) == real_path(source)), None)


def _is_below(path: Path, folder: Path) -> bool:
    return real_path(path).is_relative_to(real_path(folder)) or path.absolute().is_relative_to(folder.absolute())


def _check_place(flag: str, path: Path) -> None:
    if path.is_dir():
        raise ModelError(f"{flag}'{path}' is a folder: name a file in it")
    if is_no_file(path):
        raise ModelError(f"{flag}'{path}' is a device, pipe or socket, which is never replaced: name a file")
    if not path.parent.is_dir():
        raise ModelError(f"{flag}'{path}' cannot be written: its folder does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ModelError(f"{flag}'{path}' cannot be written: no permission to write into '{path.parent}'")
