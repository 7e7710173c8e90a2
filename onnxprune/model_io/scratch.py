"""A model as a file for ONNX Runtime alone, which maps the weights from there instead of holding them in memory.

    with scratch_file(model) as path:
        session = ort.InferenceSession(str(path))

A weight that is read from external data, or worked out from such a one whenever it is asked for, is written once into a
file of its own: the sessions of a run share it, those of copies of the model too. It goes with the tensor. Weights in
memory, which may be changed there, are written anew for each session. What a killed process left, the next one removes.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.model_io import temporary as temporaries
from onnxprune.model_io.serialise import all_initializers, write_data, write_model

_PREFIX = "onnxprune-scratch-"
_SMALLEST = 1024  # bytes; smaller tensors stay in the model file, where shape inference reads them


class _Folder:
    """A folder that is made when it is needed and goes with the process, and the shared weights in it."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._process = 0
        self._shared: weakref.WeakKeyDictionary[ir.TensorProtocol, Path] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count()

    def new_path(self) -> Path:
        """A name that no file has."""
        if self._path is None or self._process != os.getpid() or not self._path.is_dir():
            self._path, self._process, self._shared = _new_folder(), os.getpid(), weakref.WeakKeyDictionary()
        return self._path / str(next(self._numbers))

    def written(self, tensor: ir.TensorProtocol) -> tuple[Path, bool]:
        """The file with the bytes of a tensor, and whether it is kept for the next session."""
        path = self.new_path()
        known = self._shared.get(tensor)
        if known is not None and known.exists():
            return known, True
        with open(path, "wb") as file:
            write_data(tensor, file)
        kept = isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor))
        if kept:
            self._shared[tensor] = path
            weakref.finalize(tensor, _if_still(os.getpid(), _remove), path).atexit = False
        return path, kept


def _new_folder() -> Path:
    """Make a folder, with a locked file in it as long as the process lives; remove those of processes that are gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        for _, descriptor in temporaries.leftovers(folder, temporaries.TEMPORARY):
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    _, owner = temporaries.create(path / "owner")
    owner.close()
    atexit.register(_if_still(os.getpid(), partial(shutil.rmtree, ignore_errors=True)), path)
    return path


def _if_still(process: int, remove: Callable[[Path], None]) -> Callable[[Path], None]:
    """Remove in this process alone, not in one that was forked from it."""
    return lambda path: remove(path) if os.getpid() == process else None


_folder = _Folder()


@contextlib.contextmanager
def scratch_file(model: ir.Model) -> Iterator[Path]:
    """Write a model, which stays as it is, into a temporary folder; the file is there as long as the block runs.

    Raises:
        ModelError: The disk is full, or some such.
    """
    path = _folder.new_path()
    passing = [path]
    try:
        try:
            _write(model, path, passing)
        except OSError as error:
            raise ModelError(f"the temporary file '{path}' cannot be written: {error.strerror or error}.") from error
        yield path
    finally:
        for file in passing:
            _remove(file)


def _write(model: ir.Model, path: Path, passing: list[Path]) -> None:
    """Write the model's file and those of its weights; those that no other session will use join `passing`."""
    placement = {}
    for value in all_initializers(model):
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= _SMALLEST:
            file, kept = _folder.written(tensor)
            passing += [] if kept else [file]
            placement[value] = _reference(value, tensor, file.name)
    with open(path, "wb") as model_file:
        write_model(model, model_file, placement)


def _reference(value: ir.Value, tensor: ir.TensorProtocol, location: str) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(location, 0, tensor.nbytes, tensor.dtype, shape=shape, name=value.name or "")


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
