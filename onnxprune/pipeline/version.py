"""The version, of which pyproject.toml is the one source."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"  # beside the package only in a checkout


@cache
def version() -> str:
    """Return the version: of the checkout that runs, else of the installed package."""
    if _PROJECT.is_file() and (_PROJECT.parent / "passes").is_dir():
        line = re.search(r'^version = "([^"]+)"', _PROJECT.read_text(encoding="utf-8"), flags=re.M)
        if line:
            return line[1]
    from importlib.metadata import version as installed

    return installed("onnxprune")


__version__ = version()
"""The version, as a text: ``0.2.0``."""
