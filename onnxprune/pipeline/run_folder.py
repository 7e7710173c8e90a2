"""The folder of a run: whose run it holds, and when it may be used, emptied or kept.

    run.json                which run it holds, so that --resume never goes on with other data or another recipe
    iteration-2.onnx        the model after the last iteration that is done
    state.safetensors       masks, weights to go back to, trace and history that belong to it; names its model
    training.safetensors    the training under way
    best.onnx               the best model so far, where the loss was no longer a number
    part-1f0c.bin           of a run without training: what goes, or the layers that were fitted together

The state is written by checkpoint.py and training/checkpoint.py, parts by model_io/journal.py. The command
line asks this module before any work is done: it imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxprune.errors import ModelError, OnnxPruneError, RecipeError
from onnxprune.model_io.file_set import tidy
from onnxprune.model_io.paths import PARTS
from onnxprune.model_io.text_files import read_text, write_whole
from onnxprune.recipe.recipe import Recipe

RUN = "run.json"
BEST = "best.onnx"
_CHECKSUM = "sha256"
_TRY = "sparsity-"
_STATE = ("state.safetensors", "training.safetensors", "iteration-*.onnx*", f"{BEST}*", "best.*.data", PARTS)


def is_main() -> bool:
    """Whether this process writes files; the others of `accelerate launch` only compute."""
    return int(os.environ.get("RANK", "0")) == 0


def folder_of(output: Path) -> Path:
    """The folder for a run that names none: beside its output."""
    return output.with_name(f"{output.stem}.checkpoint")


def holds_run(folder: Path) -> bool:
    """Whether the folder holds a run."""
    return (folder / RUN).exists()


def ensure_usable(folder: Path, *, resume: bool, restart: bool) -> None:
    """Refuse, before any work is done, a folder that cannot be used.

    Raises:
        RecipeError: It holds a run and neither ``resume`` nor ``restart`` says what to do with it, there is nothing
            to resume, it is no folder, or it holds files that are no run's but have names of a run's.
    """
    if not is_main():
        return
    held = holds_run(folder)
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--checkpoint '{folder}' is not a folder")
    if resume and not held:
        raise RecipeError(f"--resume: there is no run to go on with in '{folder}'")
    if not held and (others := sorted(path.name for pattern in _STATE for path in folder.glob(pattern))):
        raise RecipeError(
            f"--checkpoint '{folder}' holds no run, but a file '{others[0]}', which a run would replace: name another "
            "folder"
        )
    if held and not resume and not restart:
        raise RecipeError(f"'{folder}' holds a run that was interrupted: --resume goes on with it, --force starts anew")


def begin(folder: Path, run: Mapping[str, Any], *, resume: bool) -> None:
    """Start a run in the folder, or go on with the one that it holds.

    Args:
        folder: As `ensure_usable` let it pass.
        run: Everything that decides the result, as plain data for JSON; what differs is named in this order.
        resume: Whether to go on; otherwise what the folder holds is forgotten.

    Raises:
        RecipeError: The folder holds a run with another model, recipe or other data, or a damaged one.
        ModelError: The disk is full, or the file system refused.
    """
    if not is_main():
        return
    content = json.dumps({**run, _CHECKSUM: _digest(run)}, indent=1)
    if resume:
        held = _read(folder / RUN)
        for key, value in json.loads(json.dumps(run)).items():
            if held.get(key) != value:
                raise RecipeError(
                    f"'{folder}' holds a run with another {key.replace('_', ' ')}: give what it was started with, or "
                    "another --checkpoint"
                )
        return
    forget(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"the checkpoint '{folder / RUN}' cannot be written: {error.strerror or error}") from error
    write_whole(folder / RUN, content + "\n", "the checkpoint")


def begin_search(folder: Path, recipe: Recipe, *, resume: bool) -> float | None:
    """Prepare the folder for a search that trains; return the sparsity to go on with, where one was found already.

    A search for a drop trains in every try, each in a folder of its own. The others train once, when the sparsity is
    found: that run holds it.

    Raises:
        RecipeError: The folder holds another search.
    """
    if recipe.target == "max_drop":
        begin(folder, {"recipe": recipe.model_dump(mode="json")}, resume=resume)
        return None
    return held_sparsity(folder) if resume else None


def folder_of_try(folder: Path, sparsity: float) -> Path:
    """The folder, inside that of a search which trains in every try, for the try of this sparsity."""
    return folder / f"{_TRY}{sparsity:.6f}"


def held_sparsity(folder: Path) -> float:
    """The sparsity that the run in the folder was started with, after a search.

    Raises:
        RecipeError: The folder's file cannot be read.
    """
    recipe = _read(folder / RUN).get("recipe")
    return float(recipe.get("sparsity", 0)) if isinstance(recipe, dict) else 0.0


def forget(folder: Path) -> None:
    """Remove what a run left, and the folder if nothing else is in it."""
    if not is_main() or not folder.is_dir():
        return
    for pattern in (*_STATE, RUN):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    tidy(folder)
    for inner in folder.glob(f"{_TRY}*"):
        forget(inner)
    if not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def forgotten_unless_started(folder: Path | None) -> Iterator[None]:
    """Leave no trace in the folder of a run that is refused before it had any state."""
    try:
        yield
    except OnnxPruneError:
        if folder is not None and not any(path for pattern in _STATE for path in folder.rglob(pattern)):
            forget(folder)
        raise


def _read(path: Path) -> dict[str, Any]:
    """What a run wrote of itself.

    Raises:
        RecipeError: The file cannot be read, or is damaged.
    """
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"the checkpoint '{path}' cannot be read: {error}") from None
    digest = content.pop(_CHECKSUM, None) if isinstance(content, dict) else None
    if digest is None or digest != _digest(content):
        raise RecipeError(f"the checkpoint '{path}' is damaged: its content does not have its checksum")
    return dict(content)


def _digest(run: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
