"""Small files of the user: recipes, records, pages. A pipe that nobody writes to would be read for ever."""

from __future__ import annotations

import errno
from pathlib import Path

from onnxprune.errors import ModelError
from onnxprune.model_io.atomic import publish, sync, temporary_beside

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


def write_whole(path: Path, content: bytes | str, what: str) -> None:
    """Write a file, whole or not at all; an older one is replaced.

    Args:
        path: Where.
        content: What; a text is written as UTF-8.
        what: What messages call the file: "the record".

    Raises:
        ModelError: It cannot be written.
    """
    try:
        encoded = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError:
        raise ModelError(
            f"{what} '{path}' cannot be written: a file in it has a name that is no text: rename it"
        ) from None
    try:
        with temporary_beside(path) as (temporary, file):
            file.write(encoded)
            sync(file)
            publish(temporary, path, replace=True)
    except OSError as error:
        raise ModelError(f"{what} '{path}' cannot be written: {error.strerror or error}") from error
