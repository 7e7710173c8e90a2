"""Checkpoints that survive kill -9 and hold no code: one safetensors file, with JSON in its header.

A checkpoint is written beside its place, flushed to the disk and renamed, so at any moment either the old one is there
or the new one, whole. It is read without pickle, and its checksum shows damage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onnxprune.errors import DataError, ModelError
from onnxprune.model_io.atomic import publish, sync, temporary_beside
from onnxprune.model_io.external import stored_bytes
from onnxprune.model_io.hashing import file_hash

FORMAT = "onnxprune-checkpoint/2"
LARGE = 1 << 30  # bytes of weights above which a model's weights are saved beside it


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and anything that JSON can say about them."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file beside `path`, flush it to the disk, and rename it to `path`.

    Raises:
        ModelError: The disk is full, or the file system refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_beside(path) as (beside, file):
            write(beside)
            sync(file)
            publish(beside, path, replace=True)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ModelError(f"the checkpoint '{path}' cannot be written: {reason}") from error


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the one that was there stays until the new one is complete.

    Raises:
        ModelError: The disk is full, or the file system refused.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    state = json.dumps(checkpoint.state)
    header = {"format": FORMAT, "state": state, "sha256": _checksum(plain, state)}
    replace_atomically(path, lambda beside: save_file(plain, str(beside), metadata=header))


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Read a checkpoint; None where there is none.

    Raises:
        DataError: The file is damaged or no checkpoint of ours.
    """
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if header.get("format") != FORMAT:
            raise DataError(f"'{path}' is no checkpoint of this version of onnxprune.")
        if header.get("sha256") != _checksum(tensors, header["state"]):
            raise DataError(f"The checkpoint '{path}' is damaged: its content does not have its checksum.")
        return Checkpoint(tensors, json.loads(header["state"]))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"The checkpoint '{path}' cannot be read: {error}.") from error


def _checksum(tensors: Mapping[str, Tensor], state: str) -> str:
    """SHA-256 of the state and of every tensor: its name, type, shape and bytes."""
    digest = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_model(path: Path, model: ir.Model) -> dict[str, str]:
    """Write a model that belongs to a checkpoint; large weights go into `<name>.data` beside it.

    Returns:
        The SHA-256 of each file, by name, for `ensure_whole`.

    Raises:
        ModelError: The disk is full, or the file system refused.
    """
    size = sum(stored_bytes(v.const_value) for v in model.graph.initializers.values() if v.const_value is not None)
    names = [path.name]
    if size > LARGE:
        names.append(f"{path.name}.data")
        try:
            ir.save(model, path, external_data=names[1])
        except OSError as error:
            raise ModelError(f"the checkpoint '{path}' cannot be written: {error.strerror or error}") from error
    else:
        replace_atomically(path, lambda beside: ir.save(model, beside))
    return {name: file_hash(path.with_name(name))[0] for name in names}


def ensure_whole(folder: Path, files: Mapping[str, str]) -> None:
    """Check that files of a checkpoint are those that were written.

    Args:
        folder: The folder of the checkpoint.
        files: Their hashes, as `save_model` gave them.

    Raises:
        ModelError: One is missing or damaged.
    """
    for name, digest in files.items():
        if Path(name).name != name or file_hash(folder / name)[0] != digest:
            raise ModelError(f"the checkpoint '{folder / name}' is damaged: its content does not have its checksum")
