"""Text files of the user: recipes and records. A pipe that nobody writes to would be read for ever."""

from __future__ import annotations

import errno
from pathlib import Path

_LARGEST = 1 << 30  # bytes


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a regular file.

    Raises:
        OSError: It does not exist, is a folder, pipe or device, is larger than 1 GiB, or cannot be read.
        UnicodeDecodeError: It is no UTF-8 text.
    """
    if path.exists() and not path.is_dir() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if path.is_file() and path.stat().st_size > _LARGEST:
        raise OSError(errno.EFBIG, "it is larger than 1 GiB", str(path))
    return path.read_text(encoding="utf-8")
