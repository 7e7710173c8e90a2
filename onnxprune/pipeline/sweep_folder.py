"""The folder of a sweep: one small file a result, by which an interrupted sweep goes on.

results/3f0c….json      what one run measured; its name is a hash of the model, the data, the settings, the version
sweep.html              the page
picked.onnx             the model that was picked, with its record picked.json
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxprune.errors import ModelError, RecipeError
from onnxprune.model_io import strict_json
from onnxprune.model_io.text_files import read_text, write_whole

RESULTS, PAGE, PICKED = "results", "sweep.html", "picked.onnx"
FORMAT = "onnxprune-sweep-result/1"


def key_of(what: Mapping[str, Any]) -> str:
    """Return the name of a result from all that decides it."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def prepare_folder(folder: Path) -> None:
    """Make the folder of a sweep, or take one that holds a sweep.

    Raises:
        RecipeError: It holds other things.
        ModelError: It cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--output '{folder}' is a file: a sweep writes into a folder")
    if folder.is_dir() and not (folder / RESULTS).is_dir() and any(folder.iterdir()):
        raise RecipeError(f"--output '{folder}' holds other files and no sweep: name a folder of its own")
    try:
        (folder / RESULTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"the folder '{folder}' cannot be made: {error.strerror or error}") from None


def leave_if_empty(folder: Path) -> None:
    """Remove a folder that nothing was written into."""
    for path in (folder / RESULTS, folder):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def read_result(folder: Path, key: str) -> dict[str, Any] | None:
    """Return what a run measured; None where there is no whole file of it, so that it is run again."""
    try:
        content = json.loads(read_text(_path(folder, key)))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("key") != key:
        return None
    figures = content.get("figures")
    if not isinstance(figures, dict):
        return None
    content["figures"] = {name: math.nan if value is None else float(value) for name, value in figures.items()}
    return content


def write_result(folder: Path, key: str, result: Mapping[str, Any]) -> None:
    """Keep what a run measured.

    Raises:
        ModelError: The disk is full, or the file system refused.
    """
    text, _ = strict_json.dumps({"format": FORMAT, "key": key, **result})
    write_whole(_path(folder, key), text + "\n", "the result")


def _path(folder: Path, key: str) -> Path:
    return folder / RESULTS / f"{key}.json"
