"""Paths as the file system knows them."""

from __future__ import annotations

import os
from pathlib import Path


def real_path(path: Path) -> Path:
    """Return the absolute path without links. Links that lead in a circle stay: whoever opens one is told."""
    return Path(os.path.realpath(path))
