"""One hash for a model, however many files it lies in."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

from onnxprune.errors import ModelError

from . import protobuf
from .external import check_external_data

_CHUNK = 1 << 20


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a model, in hexadecimal.

    Without external data it is the hash of the file, as `sha256sum` gives it. With external data it is the hash of
    the text of one line `<sha256> <name>` for the model (its name left empty) and each data file, by name relative to
    the model's folder.

    Raises:
        ModelError: A file cannot be read, or the external data is refused.
    """
    path = Path(path)
    own = _file_hash(path)
    if not _mentions_external_data(path):
        return own
    folder = Path(os.path.abspath(path)).parent
    data_files = check_external_data(protobuf.read_proto(path), folder)
    if not data_files:
        return own
    lines = sorted(f"{_file_hash(file)} {file.relative_to(folder.resolve()).as_posix()}\n" for file in data_files)
    return hashlib.sha256("".join([f"{own} \n", *lines]).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def _mentions_external_data(path: Path) -> bool:
    """Whether the word 'location', the key that every external tensor has, occurs in the file: a cheap first look."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"location") >= 0
