"""Functions that a user names as `module:function`: data sources, losses, metrics, schedules.

The module is imported as `python -m` would: the current folder counts as a place to look. Importing runs the module's
code, so such a name is only ever taken from the user's own flags, recipe or Python, never from a model or data file.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxprune.errors import RecipeError


def is_reference(name: str) -> bool:
    """True where `name` is written `module:function` (and is not a Windows path such as `C:\\data`)."""
    module, colon, function = name.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load_function(reference: str, purpose: str) -> Callable[..., Any]:
    """The function that `reference` names.

    Args:
        reference: `package.module:function`.
        purpose: What it is for, in the words of the message: "metric", "loss", ...

    Raises:
        RecipeError: It is no such name, the module cannot be imported, or has no such function.
    """
    if not is_reference(reference):
        raise RecipeError(f"The {purpose} '{reference}' is not a known name, nor of the form module:function.")
    module_name, _, function_name = reference.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(f"The {purpose} '{reference}' cannot be imported: {error}.") from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise RecipeError(f"The module '{module_name}' has no function '{function_name}' to use as {purpose}.")
    return function
