"""Paths as the file system knows them."""

from __future__ import annotations

import os
from pathlib import Path

PARTS = "part-*.bin"
"""What the files of a journal's parts are called (journal.py)."""


def real_path(path: Path) -> Path:
    """Return the absolute path without links. Links that lead in a circle stay: whoever opens one is told."""
    return Path(os.path.realpath(path))


def is_no_file(path: Path) -> bool:
    """Say whether a path is a device, pipe or socket, or a name among those, such as the link ``/dev/stdout``.

    Such a name leads to a plain file where the output of a program goes to one, and must not be replaced even then.
    """
    folder = real_path(path.parent)
    among_devices = folder == Path("/dev") or any(folder.is_relative_to(top) for top in ("/proc", "/sys"))
    return among_devices or (path.exists() and not path.is_file())
