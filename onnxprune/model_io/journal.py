"""What a long run has found so far, part by part, in a folder: a run that was interrupted reads it and goes on.

    journal = Journal(folder)
    if "layer 3" in journal: arrays, notes = journal.read("layer 3")
    else: ...; journal.write("layer 3", {"weight": array}, {"error": 0.1})

Each part is a file that appears whole or not at all, and its checksum shows damage. A part is found by its key alone:
whose run the folder holds is written beside them (pipeline/run_folder.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError, ModelError
from onnxprune.model_io.atomic import publish, sync, temporary_beside
from onnxprune.model_io.paths import PARTS

Array = npt.NDArray[Any]

_FORMAT = "onnxprune-part/1"
_ALIGNED = 64
_PIECE = 1 << 24  # bytes that are hashed and written at once


@dataclass(frozen=True)
class Journal:
    """The parts of one run.

    Attributes:
        folder: Where they are; None for a run that keeps none.
    """

    folder: Path | None = None

    def __contains__(self, key: str) -> bool:
        return self.folder is not None and self._path(self.folder, key).exists()

    def write(self, key: str, arrays: Mapping[str, Array], notes: Mapping[str, Any]) -> None:
        """Keep a part; it is on the disk when this returns.

        Args:
            key: What the part is, unlike all others of the run.
            arrays: Its arrays, by name.
            notes: What JSON can say of it.

        Raises:
            ModelError: The disk is full, or the file system refused.
        """
        if self.folder is None:
            return
        path = self._path(self.folder, key)
        tensors = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
        header = json.dumps({"format": _FORMAT, "key": key, "notes": dict(notes), "arrays": tensors}).encode()
        header += b" " * (-(len(header) + 8) % _ALIGNED)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary_beside(path) as (temporary, file):
                digest = hashlib.sha256()
                _put(file, digest, len(header).to_bytes(8, "little") + header)
                for array in arrays.values():
                    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                    for start in range(0, content.size, _PIECE):
                        _put(file, digest, content[start : start + _PIECE].tobytes())
                    _put(file, digest, bytes(-content.size % _ALIGNED))
                file.write(digest.digest())
                sync(file)
                publish(temporary, path, replace=True)
        except OSError as error:
            raise ModelError(f"the checkpoint '{path}' cannot be written: {error.strerror or error}") from error

    def read(self, key: str) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays of a part, mapped from its file, and what was noted of it.

        Raises:
            DataError: The file is damaged, or cannot be read.
        """
        assert self.folder is not None
        path = self._path(self.folder, key)
        try:
            header, start = _whole(path)
            if header["format"] != _FORMAT or header["key"] != key:
                raise ValueError
            arrays: dict[str, Array] = {}
            for name, kind, shape in header["arrays"]:
                dtype, count = _dtype(kind), int(np.prod(shape))
                flat = np.memmap(path, dtype, "r", start, (count,)) if count else np.zeros(0, dtype)
                arrays[name] = flat.reshape(shape)
                start += -(-count * dtype.itemsize // _ALIGNED) * _ALIGNED
            return arrays, header["notes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"the checkpoint '{path}' is damaged or cannot be read: remove it, and --resume finds that part anew"
            ) from error

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / PARTS.replace("*", hashlib.sha256(key.encode()).hexdigest()[:20])


def _put(file: IO[bytes], digest: Any, content: bytes) -> None:
    file.write(content)
    digest.update(content)


def _whole(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a file whose checksum is right, and where the arrays begin.

    Raises:
        ValueError: It is not right.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        left = path.stat().st_size - digest.digest_size
        while left > 0:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise ValueError
            digest.update(piece)
            left -= len(piece)
        if file.read() != digest.digest():
            raise ValueError
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def _dtype(name: str) -> np.dtype[Any]:
    """A type by its name, those of 16 and 8 bits that numpy lacks among them."""
    return np.dtype(getattr(ml_dtypes, name, name))
