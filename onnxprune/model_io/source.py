"""Where a loaded model came from. It travels with the model, also through `Model.clone`, and is never serialised."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import ModelError

_KEY = "onnxprune.source"
_BYTES = "onnxprune.bytes_read"


State = tuple[int, ...]
"""Device, inode, size, and the times of the last change of a file: another file, or content, has another."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The files that a model was read from.

    Attributes:
        path: The model file.
        data_files: The external data files it uses, resolved, without duplicates. Empty when the weights are embedded.
        states: What the file system said of `files` before they were read; empty where nobody asked.
        holds_weights: Whether weights are read from the model file, too, when they are needed.
    """

    path: Path
    data_files: tuple[Path, ...] = ()
    states: tuple[State | None, ...] = dataclasses.field(default=(), compare=False)
    holds_weights: bool = dataclasses.field(default=False, compare=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that must never be written to."""
        return (self.path, *self.data_files)


def states_of(files: Iterable[Path]) -> tuple[State | None, ...]:
    """The state of each file; None where there is none."""
    return tuple(map(_state_of, files))


def _state_of(path: Path) -> State | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def ensure_unchanged(model: ir.Model, *, data_alone: bool = False) -> None:
    """Check that the files of a model are still those that were read.

    Weights in external data and those of large models are read when they are needed, so that a file which changes
    meanwhile would give a model of two halves.

    Args:
        model: Made in memory, or loaded from a file.
        data_alone: Look at the files alone that weights are still read from: a small model file was read at once, and
            may be gone by now.

    Raises:
        ModelError: A file was changed or replaced since then.
    """
    source = source_of(model)
    if source is None or not source.states:
        return
    first = 1 if data_alone and not source.holds_weights else 0
    for file, before in list(zip(source.files, source.states, strict=True))[first:]:
        if before != _state_of(file):
            raise ModelError(
                f"'{file}' was changed or replaced while onnxprune read it: run again with a file that stays as it is"
            )


def set_source(model: ir.Model, source: Source) -> None:
    """Attach the source to the model."""
    model.graph.meta[_KEY] = source


def set_bytes(model: ir.Model, count: int | None) -> None:
    """Note how many bytes the files of a model have, or that the model in memory is no file's any more."""
    if count is None:
        model.graph.meta.pop(_BYTES, None)
    else:
        model.graph.meta[_BYTES] = count


def bytes_read(model: ir.Model) -> int | None:
    """How many bytes the files have that a model was read from; None for a model made or given in memory."""
    count = model.graph.meta.get(_BYTES)
    return count if isinstance(count, int) else None


def source_of(model: ir.Model) -> Source | None:
    """The files the model was read from; None for a model made in memory."""
    source = model.graph.meta.get(_KEY)
    return source if isinstance(source, Source) else None
