"""Arrays from .npz and .npy files: read without running code, their shapes before their bytes."""

from __future__ import annotations

import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError

Array = npt.NDArray[Any]

_DAMAGES = (
    OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, SyntaxError,
    RuntimeError, TypeError, KeyError, OverflowError, RecursionError,
)  # fmt: skip
"""What numpy and zipfile raise for files that are no archive, damaged, encrypted or pickled."""

_SHARE_OF_MEMORY = 0.8  # of what is free, that the arrays of one file may take


def read_npz(path: Path) -> dict[str, Array]:
    """Read all arrays of an .npz file.

    Raises:
        DataError: There is no such file, it is no .npz of plain arrays, or its arrays do not fit into the memory.
    """
    require_file(path)
    with _in_words(path, "an .npz file of plain arrays"), zipfile.ZipFile(path) as archive:
        headers = {}
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if not entry.filename.endswith(".npy"):
                raise DataError(f"'{path}' holds '{name}', which is no array.")
            if name in headers:
                raise DataError(f"'{path}' holds two arrays '{name}'.")
            with archive.open(entry) as file:
                headers[name] = _header(file, name, path)
            stated, held = _bytes(*headers[name]), entry.file_size
            if stated > held:
                raise DataError(f"'{path}': the array '{name}' states {stated:,} bytes, and the file holds {held:,}.")
        _check_memory(path, headers)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in headers}


def read_npy(path: Path) -> Array:
    """Read the one array of an .npy file.

    Raises:
        DataError: There is no such file, it is no .npy of a plain array, or it does not fit into the memory.
    """
    require_file(path)
    with _in_words(path, "an .npy file of a plain array"):
        with path.open("rb") as file:
            header = _header(file, path.stem, path)
            stated, held = _bytes(*header), path.stat().st_size
            if stated > held:
                raise DataError(f"'{path}' states {stated:,} bytes of numbers, and the file holds {held:,}.")
        _check_memory(path, {path.stem: header})
        return np.asarray(np.load(path, allow_pickle=False))


def require_file(path: Path) -> None:
    """Refuse what is no regular file, before anything waits for it.

    Raises:
        DataError: It does not exist, or is a folder, pipe, socket or device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(f"No data at '{path}': there is no such file.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"No data at '{path}': {getattr(error, 'strerror', None) or error}.") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise DataError(f"'{path}' is {kind}, no file: data are read from files.")


@contextmanager
def _in_words(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _DAMAGES as error:
        raise DataError(f"'{path}' cannot be read: it is not {what}.") from error
    except MemoryError as error:
        raise DataError(f"'{path}' states an array that is larger than the memory.") from error


def _header(file: IO[bytes], name: str, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and element type that an array states, read before its numbers."""
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    if dtype.hasobject:
        raise DataError(f"'{path}' cannot be read: its array '{name}' holds Python objects, not plain numbers.")
    if any(extent < 0 for extent in shape):
        raise DataError(f"'{path}' cannot be read: its array '{name}' states the shape {list(shape)}.")
    return shape, dtype


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _check_memory(path: Path, headers: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
    needed = sum(_bytes(*header) for header in headers.values())
    free = _free_memory()
    if free is not None and needed > free * _SHARE_OF_MEMORY:
        name, (shape, dtype) = max(headers.items(), key=lambda item: _bytes(*item[1]))
        raise DataError(
            f"'{path}' unpacks to {needed:,} bytes, more than the memory that is free ({free:,}): its array '{name}' "
            f"has the shape {list(shape)} of {dtype}. Give fewer samples, or module:function, which reads as it goes."
        )


def _free_memory() -> int | None:
    """Bytes that can be had without swapping, where the system tells."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError, IndexError):
        return None
