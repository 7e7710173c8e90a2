"""External data: where a tensor's bytes lie outside the model file, and whether they may be read.

A model is data from elsewhere, so a location is only followed inside the model's own folder: no absolute path, no
`..`, no symbolic link that leads out, no hard link (which could be any file of the disk under an innocent name). One
link may lead out: where the model itself is a link, as in the cache of the Hugging Face hub, its data may be a link to
a file beside the one that the model leads to.
"""

from __future__ import annotations

import functools
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir
from onnx.external_data_helper import ExternalDataInfo
from onnx_ir import external_data

from onnxprune.errors import ModelError
from onnxprune.model_io import protobuf
from onnxprune.model_io.bodies import graphs_of
from onnxprune.model_io.paths import real_path


def check_external_data(parts: protobuf.Parts, model: Path | None) -> dict[str, Path]:
    """Check every external tensor.

    Args:
        parts: Those of the model, read without its external data.
        model: Its file, in whose folder locations are looked for; None when the model came without one.

    Returns:
        The data files, resolved, by the location that the model gives, in order of first use.

    Raises:
        ModelError: A data file is missing, too short, outside the folder, or there is no folder.
    """
    sizes: dict[str, tuple[Path, int]] = {}
    for tensor in _external_tensors(parts, also_initializers=True):
        location = _location(tensor)
        if location not in sizes:
            sizes[location] = _data_file(tensor.name, location, model)
        _check_extent(tensor, *sizes[location])
    return {location: path for location, (path, _) in sizes.items()}


def data_files_of(model: Path) -> tuple[Path, ...]:
    """The data files, resolved, of the model in a file; none where that is no model that can be loaded."""
    try:
        files = check_external_data(protobuf.parts_of(protobuf.read_proto(model)), Path(os.path.abspath(model)))
    except ModelError:
        return ()
    return tuple(dict.fromkeys(files.values()))


def embed_outside_initializers(parts: protobuf.Parts, files: Mapping[str, Path]) -> None:
    """Read external attribute tensors and the parts of sparse tensors into the protobuf; initializers stay on disk.

    onnx-ir keeps only initializers lazily and safely: its save leaves external attribute tensors dangling.
    """
    for tensor in _external_tensors(parts, also_initializers=False) if files else ():
        path = files[_location(tensor)]
        next(entry for entry in tensor.external_data if entry.key == "location").value = path.name
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def find_data(model: ir.Model, folder: Path, files: Mapping[str, Path]) -> None:
    """Tell the external tensors of a model where their data lie; onnx-ir itself follows no link out of a folder."""
    external_data.set_base_dir(model.graph, str(folder))
    root = real_path(folder)
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor) or (path := files[str(tensor.location)]).is_relative_to(root):
                continue
            value.const_value = ir.ExternalTensor(
                path.name,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=tensor.name,
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
                base_dir=path.parent,
            )


def _external_tensors(parts: protobuf.Parts, *, also_initializers: bool) -> Iterator[onnx.TensorProto]:
    tensors = parts.dense if also_initializers else parts.attributes
    of_sparse = [tensor for sparse in parts.sparse for tensor in (sparse.values, sparse.indices)]
    return (tensor for tensor in (*tensors, *of_sparse) if tensor.data_location == onnx.TensorProto.EXTERNAL)


def byte_size(tensor: onnx.TensorProto) -> int:
    """Bytes that the tensor's elements take as raw data.

    Raises:
        ModelError: A negative dimension, or an element type that onnx-ir does not know.
    """
    dims, kind = list(tensor.dims), tensor.data_type
    if min(dims, default=0) < 0:
        raise ModelError(f"tensor '{tensor.name}' has a negative dimension: {dims}.")
    if kind == onnx.TensorProto.STRING:
        return 0  # texts are never raw data
    try:
        bits = _bits(kind)
    except (ValueError, TypeError) as error:
        raise ModelError(f"tensor '{tensor.name}' has the unknown element type {kind}.") from error
    return (math.prod(dims) * bits + 7) // 8


@functools.cache
def _bits(element_type: int) -> int:
    """Bits of an element of a type that onnx-ir knows."""
    return ir.DataType(element_type).bitwidth


def stored_bytes(tensor: ir.TensorProtocol) -> int:
    """Return how many bytes a tensor takes in a file; of texts, those of their letters in UTF-8."""
    if tensor.dtype == ir.DataType.STRING:
        texts = tensor.numpy().reshape(-1).tolist()
        return sum(len(text if isinstance(text, bytes) else str(text).encode()) + 2 for text in texts)
    return int(tensor.nbytes)


def _location(tensor: onnx.TensorProto) -> str:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    if not location:
        raise ModelError(f"tensor '{tensor.name}' has external data but names no file.")
    return location


def _data_file(name: str, location: str, model: Path | None) -> tuple[Path, int]:
    """The resolved data file and its size in bytes, once it has been found safe to read."""
    if model is None:
        raise ModelError(
            f"tensor '{name}' has its data in '{location}', but the model came without a folder: load it from its file."
        )
    where = f"the external data '{location}' of tensor '{name}'"
    if PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive or "\0" in location:
        raise ModelError(f"{where} is an absolute path: external data must lie in the folder of the model.")
    root = real_path(model.parent)
    written = root / location
    path = real_path(written)
    beside_the_model = model.is_symlink() and written.is_symlink() and path.parent == real_path(model).parent
    if not (path.is_relative_to(root) or beside_the_model) or ".." in PurePosixPath(location).parts:
        raise ModelError(
            f"{where} leads out of the model's folder: copy the data into the folder and refer to it there."
        )
    try:
        status = path.stat()
    except OSError:
        raise ModelError(f"{where} is missing: it should be at '{path}'.") from None
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{where} is not a regular file.")
    if status.st_nlink > 1:
        raise ModelError(f"{where} has several hard links, so it may be a file from elsewhere: make a copy of it.")
    return path, status.st_size


def _check_extent(tensor: onnx.TensorProto, path: Path, size: int) -> None:
    """Refuse a tensor whose bytes do not lie whole inside its data file."""
    try:
        info = ExternalDataInfo(tensor)
        offset, length = int(info.offset or 0), int(info.length or 0)
    except ValueError as error:
        raise ModelError(f"tensor '{tensor.name}' has an unreadable offset or length of external data.") from error
    need = byte_size(tensor)
    if offset < 0 or length < 0 or (length and length != need):
        raise ModelError(f"tensor '{tensor.name}' needs {need:,} bytes of external data but states {length:,}.")
    if offset + need > size:
        raise ModelError(f"'{path}' is truncated: tensor '{tensor.name}' ends at byte {offset + need:,} of {size:,}.")
