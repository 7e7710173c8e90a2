"""The files that a run writes: refused before any work is done where they could not be written at its end."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from onnxprune.errors import ModelError, RecipeError


def check_outputs(model: Path, target: Path | None, beside: Mapping[str, Path | None], *, force: bool) -> None:
    """Refuse an output that exists, cannot be written, or would replace another file of the run.

    Args:
        model: The model that is read.
        target: Where the pruned model goes; None where none is written.
        beside: What else is written, by flag; None where it was not asked for.
        force: Whether `target` may replace a file.

    Raises:
        ModelError: The model does not exist, or a file cannot be written.
        RecipeError: Two files of the run are one.
    """
    from onnxprune import model_io

    if not model.is_file():
        raise ModelError(f"the model '{model}' does not exist" if not model.exists() else f"'{model}' is not a file")
    taken = {model.resolve(): "the model"}
    if target is not None:
        model_io.check_output(target, force=force, source=model_io.Source(model))
        taken[target.resolve()] = "the output"
    for flag, path in beside.items():
        if path is None:
            continue
        _check_place(f"{flag} ", path)
        if path.resolve() in taken:
            raise RecipeError(f"{flag} '{path}' is {taken[path.resolve()]} itself: choose another name")
        taken[path.resolve()] = f"the file of {flag}"
    if beside.get("--report") is not None and importlib.util.find_spec("jinja2") is None:
        raise RecipeError("--report needs jinja2: pip install 'onnxprune[report]'")


def check_folder(path: Path | None) -> Path | None:
    """Refuse, as the callback of a flag, a file that cannot be written."""
    if path is not None:
        _check_place("", path)
    return path


def _check_place(flag: str, path: Path) -> None:
    if path.is_dir():
        raise ModelError(f"{flag}'{path}' is a folder: name a file in it")
    if not path.parent.is_dir():
        raise ModelError(f"{flag}'{path}' cannot be written: its folder does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ModelError(f"{flag}'{path}' cannot be written: no permission to write into '{path.parent}'")
