"""One hash for a model, however many files it lies in."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from onnxprune.errors import ModelError
from onnxprune.model_io import protobuf
from onnxprune.model_io.external import check_external_data
from onnxprune.model_io.paths import real_path

_CHUNK = 1 << 20
_KEY = b"location"


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a model, in hexadecimal.

    Without external data it is the hash of the file, as `sha256sum` gives it. With external data it is the hash of
    the text of one line `<sha256> <name>` for the model (its name left empty) and each data file, by name relative to
    the model's folder.

    Raises:
        ModelError: A file cannot be read, or the external data is refused.
    """
    path = Path(path)
    model_hash, may_be_external = file_hash(path)
    if not may_be_external:
        return model_hash
    model = Path(os.path.abspath(path))
    data_files = check_external_data(protobuf.parts_of(protobuf.read_proto(path)), model)
    root = real_path(model.parent)
    names = {
        file: file.relative_to(root).as_posix() if file.is_relative_to(root) else location
        for location, file in data_files.items()
    }
    return combined({name: file_hash(file)[0] for file, name in names.items()}, model_hash)


def combined(data_files: Mapping[str, str], model_hash: str) -> str:
    """The hash of a model from those of its data files, by name relative to its folder, and that of its own file."""
    if not data_files:
        return model_hash
    lines = sorted(f"{digest} {name}\n" for name, digest in data_files.items())
    return hashlib.sha256("".join([f"{model_hash} \n", *lines]).encode()).hexdigest()


def file_hash(path: Path) -> tuple[str, bool]:
    """The hash of one file, and whether `location` occurs in it, the key that every external tensor has."""
    digest = hashlib.sha256()
    mentions_data, end = False, b""
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                mentions_data = mentions_data or _KEY in end + chunk[: len(_KEY)] or _KEY in chunk
                end = chunk[-len(_KEY) :]
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}.") from error
    return digest.hexdigest(), mentions_data
