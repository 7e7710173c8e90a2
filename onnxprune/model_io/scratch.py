"""A model as a file for ONNX Runtime alone, which maps the weights from there instead of holding them in memory.

    with scratch_file(model) as path:
        session = ort.InferenceSession(str(path))

A weight that is read from external data, or worked out from such a one whenever it is asked for, is written once into a
file of its own: the sessions of a run share it, those of copies of the model too. It goes with the tensor. Weights in
memory, which may be changed there, are written anew for each session.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.model_io.serialise import all_initializers, write_data, write_model

_SMALLEST = 1024  # bytes; smaller tensors stay in the model file, where shape inference reads them


class _Folder:
    """A folder that is made when it is needed and goes with the process, and the shared weights in it."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._shared: weakref.WeakKeyDictionary[ir.TensorProtocol, Path] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count()

    def new_path(self) -> Path:
        """A name that no file has."""
        if self._folder is None or not Path(self._folder.name).is_dir():
            self._folder = tempfile.TemporaryDirectory(prefix="onnxprune-")
            self._shared.clear()
        return Path(self._folder.name) / str(next(self._numbers))

    def written(self, tensor: ir.TensorProtocol) -> tuple[Path, bool]:
        """The file with the bytes of a tensor, and whether it is kept for the next session."""
        known = self._shared.get(tensor)
        if known is not None and known.exists():
            return known, True
        path = self.new_path()
        with open(path, "wb") as file:
            write_data(tensor, file)
        kept = isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor))
        if kept:
            self._shared[tensor] = path
            weakref.finalize(tensor, _remove, path)
        return path, kept


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
