"""Temporary files of ours: their names, the lock that shows that their process lives, their removal when it is gone.

A name is `.<file>.<16 hexadecimal digits>.onnxprune-tmp`; no other program makes such names. The process that writes
the file holds a lock on it, which the system releases when the process ends, however it ends. So a file whose lock
can be had is the leftover of a process that was killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: no such locks, so leftovers stay
    fcntl = None  # type: ignore[assignment]

TEMPORARY, SET = "tmp", "set"
_NAME = re.compile(r"\..*\.[0-9a-f]{16}\.onnxprune-(tmp|set)", re.DOTALL)
_LONGEST = 60  # characters of the file's own name
_locks: dict[Path, int] = {}


def create(path: Path, kind: str = TEMPORARY) -> tuple[Path, IO[bytes]]:
    """Open a new file in the folder of `path`, under a random name of ours, and lock it until `release`.

    Raises:
        OSError: The file cannot be created.
    """
    while True:
        temporary = path.with_name(new_name(path, kind))
        file = temporary.open("xb")
        if _lock(file.fileno()):
            _locks[temporary] = os.dup(file.fileno())
        if temporary.exists():
            return temporary, file
        release(temporary)  # another process took it for a leftover before it was locked
        file.close()


def new_name(path: Path, kind: str = TEMPORARY) -> str:
    """A name for a temporary file beside `path` that no other file has."""
    return f".{path.name[:_LONGEST]}.{secrets.token_hex(8)}.onnxprune-{kind}"


def release(temporary: Path) -> None:
    """Give the lock of a file up, which has its final name by now, or is gone."""
    descriptor = _locks.pop(temporary, None)
    if descriptor is not None:
        os.close(descriptor)


def remove(temporary: Path) -> None:
    """Remove a temporary file, where it still has that name."""
    temporary.unlink(missing_ok=True)
    release(temporary)


def leftovers(folder: Path, kind: str) -> list[tuple[Path, int]]:
    """The files of ours in a folder whose process is gone, each with a descriptor that holds its lock from now on."""
    files: list[tuple[Path, int]] = []
    if fcntl is None:
        return files
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not is_ours(entry.name, kind) or not entry.is_file(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                if stat.S_ISREG(os.fstat(descriptor).st_mode) and _lock(descriptor):
                    files.append((Path(entry.path), descriptor))
                else:
                    os.close(descriptor)
    return files


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder; what cannot be removed stays."""
    for path, descriptor in leftovers(folder, TEMPORARY):
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def is_ours(name: str, kind: str = TEMPORARY) -> bool:
    """Whether a file's name is one that only this module makes."""
    match = _NAME.fullmatch(name)
    return match is not None and match[1] == kind


def _lock(descriptor: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
