"""Write a model so that it appears whole or not at all, and never over its own source.

A model that came with external data, or is near the 2 GB that a protobuf can hold, gets its weights in one data file
beside it, `<name>.<hash>.data`. The name holds a hash of the content: two writers never write into each other's data,
the model that is being replaced stays whole until the rename, and the same model always gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.model_io.atomic import publish, sync, temporary_beside, together
from onnxprune.model_io.external import data_files_of, stored_bytes
from onnxprune.model_io.hashing import combined, file_hash
from onnxprune.model_io.paths import is_no_file
from onnxprune.model_io.serialise import all_initializers, serialized_size, write_data, write_model
from onnxprune.model_io.source import Source, bytes_read, ensure_unchanged, source_of

EXTERNAL_THRESHOLD = 1_900_000_000
_INLINE_BYTES = 1024  # smaller tensors stay in the model file, where shape inference reads them
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        path: The model file.
        data_file: Its external data; None when the weights are embedded.
        size: Bytes of both together.
        sha256: The hash of both, as `model_io.sha256` gives it.
        stale: Data files of the model that was replaced. They are left alone, since a copy of that model may use them.
    """

    path: Path
    data_file: Path | None
    size: int
    sha256: str
    stale: tuple[Path, ...] = ()


def check_output(path: str | os.PathLike[str], *, force: bool = False, source: Source | None = None) -> None:
    """Refuse an output path that `save` would refuse, before the work starts.

    Raises:
        ModelError: The path is the input or one of its data files, exists (without `force`), is a folder or device, or
            its folder is missing or cannot be written to.
    """
    path = Path(path)
    for file in source.files if source else ():
        if _same_file(path, file):
            raise ModelError(f"the output '{path}' is the input '{file}', which is never changed: choose another name.")
    if path.is_dir():
        raise ModelError(f"the output '{path}' is a folder: name a file in it.")
    if is_no_file(path):
        raise ModelError(f"the output '{path}' is a device, pipe or socket, which is never replaced: name a file.")
    if os.path.lexists(path) and not force:
        raise ModelError(f"the output '{path}' exists already: use --force to replace it, or choose another name.")
    folder = path.parent
    if not folder.is_dir():
        raise ModelError(f"the output '{path}' cannot be written: there is no folder '{folder}'.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ModelError(f"the output '{path}' cannot be written: no permission to write into '{folder}'.")


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    source: Source | None = None,
    external: bool | None = None,
    external_threshold: int = EXTERNAL_THRESHOLD,
    durable: bool = True,
) -> Saved:
    """Write the model; the model itself stays as it is.

    Args:
        model: The model.
        path: Where it appears.
        force: Replace an existing file.
        source: Files that must not be written to; by default those the model was loaded from.
        external: Whether weights go to external data. By default they do when they came so, and when the weights
            take more than `external_threshold` bytes.
        external_threshold: In bytes.
        durable: Wait until the disk has everything, so that a power cut cannot take it; not needed for scratch files.

    Raises:
        ModelError: As `check_output`, or the disk is full, or some such, or the files that the model was read from
            were changed since then; nothing is left behind then.
    """
    path = Path(path)
    source = source or source_of(model)
    check_output(path, force=force, source=source)
    placed = _placed(model, source, external, external_threshold)
    try:
        stale = data_files_of(path) if force else ()
        saved = _write(model, path, placed, replace=force, durable=durable)
    except FileExistsError:
        raise ModelError(f"the output '{path}' exists already: use --force to replace it.") from None
    except OSError as error:
        raise ModelError(f"the output '{path}' cannot be written: {error.strerror or error}.") from error
    return dataclasses.replace(saved, stale=tuple(file for file in stale if file != saved.data_file))


def saved_size(model: ir.Model) -> int:
    """Bytes of the files that `save` would write by default: model file and external data together.

    Exact but for the length of the name that the data file gets, which each external weight repeats.
    """
    source = source_of(model)
    placed = _placed(model, source, None, EXTERNAL_THRESHOLD)
    if not placed:
        return serialized_size(model)
    extents = _layout(placed)
    location = _data_name(source.path.name if source else "model.onnx", "0" * 64)
    placement = {value: _reference(value, location, extents[value]) for value in placed}
    return serialized_size(model, placement) + sum(extents[placed[-1]])


def size_of_files(model: ir.Model) -> int:
    """Bytes of the files that a model was read from; of others, the bytes that `save` would write."""
    count = bytes_read(model)
    return saved_size(model) if count is None else count


def _data_name(name: str, digest: str) -> str:
    """The name of the data file of a model file, by the sha256 of what it holds."""
    return f"{name}.{digest[:12]}.data"


def _placed(model: ir.Model, source: Source | None, external: bool | None, threshold: int) -> list[ir.Value]:
    """The weights that go to external data; see `save`."""
    if external is None:
        external = bool(source and source.data_files)
    values = list(all_initializers(model))
    if external or sum(stored_bytes(value.const_value) for value in values if value.const_value) > threshold:
        return [value for value in values if _goes_out(value)]
    return []


def _write(model: ir.Model, path: Path, placed: list[ir.Value], *, replace: bool, durable: bool) -> Saved:
    """Write the data file, then the model; publish the data first, so that no model ever lacks its data."""
    with together(), ExitStack() as stack:
        data_file, data_temporary, hashes = None, None, {}
        placement: dict[ir.Value, ir.ExternalTensor] = {}
        if placed:
            data_temporary, file = stack.enter_context(temporary_beside(path))
            extents, digest = _write_tensors(placed, file)
            _finish(file, durable)
            data_file = path.with_name(_data_name(path.name, digest))
            hashes[data_file.name] = digest
            placement = {value: _reference(value, data_file.name, extents[value]) for value in placed}
        temporary, file = stack.enter_context(temporary_beside(path))
        write_model(model, file, placement)
        _finish(file, durable)
        size = file.tell() + (data_temporary.stat().st_size if data_temporary else 0)
        digest = combined(hashes, file_hash(temporary)[0])
        ensure_unchanged(model, data_alone=True)
        if data_temporary and data_file:
            publish(data_temporary, data_file, replace=True, durable=durable, mode_of=path, named_by_content=True)
        publish(temporary, path, replace=replace, durable=durable)
    return Saved(path, data_file, size, digest)


def _finish(file: IO[bytes], durable: bool) -> None:
    if durable:
        sync(file)
    else:
        file.flush()


class _HashingWriter:
    """Writes to a file and hashes what it writes. It has no `fileno`, so that nothing is copied past it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)


def _layout(values: Iterable[ir.Value]) -> dict[ir.Value, tuple[int, int]]:
    """(offset, length) in bytes of each tensor, one after the other."""
    extents: dict[ir.Value, tuple[int, int]] = {}
    end = 0
    for value in values:
        assert value.const_value is not None
        start = end + -end % _ALIGNMENT
        end = start + value.const_value.nbytes
        extents[value] = (start, value.const_value.nbytes)
    return extents


def _write_tensors(values: Iterable[ir.Value], file: IO[bytes]) -> tuple[dict[ir.Value, tuple[int, int]], str]:
    """Write tensors one after the other; returns where each lies, and the file's sha256."""
    extents = _layout(values)
    writer = _HashingWriter(file)
    end = 0
    for value, (start, length) in extents.items():
        assert value.const_value is not None
        writer.write(b"\0" * (start - end))
        write_data(value.const_value, writer)
        end = start + length
    return extents, writer.digest.hexdigest()


def _reference(value: ir.Value, location: str, extent: tuple[int, int]) -> ir.ExternalTensor:
    tensor = value.const_value
    assert tensor is not None
    return ir.ExternalTensor(
        location,
        *extent,
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=value.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _goes_out(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= _INLINE_BYTES


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)
