"""Checkpoints that survive kill -9 and hold no code: one safetensors file, with JSON in its header.

A checkpoint is written beside its place, flushed to the disk and renamed, so at any moment either the old one is there
or the new one, whole. It is read without pickle.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onnxprune.errors import DataError
from onnxprune.model_io.external import stored_bytes

FORMAT = "onnxprune-checkpoint/1"
LARGE = 1 << 30  # bytes of weights above which a model's weights are saved beside it


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and anything that JSON can say about them."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file beside `path`, flush it to the disk, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        write(beside)
        _flush(beside)
        os.replace(beside, path)
        _flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the one that was there stays until the new one is complete."""
    header = {"format": FORMAT, "state": json.dumps(checkpoint.state)}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
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
            raise DataError(f"'{path}' is no checkpoint of onnxprune.")
        return Checkpoint(tensors, json.loads(header["state"]))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"The checkpoint '{path}' cannot be read: {error}.") from error


def save_model(path: Path, model: ir.Model) -> None:
    """Write a model that belongs to a checkpoint; large weights go into `<name>.data` beside it."""
    size = sum(stored_bytes(v.const_value) for v in model.graph.initializers.values() if v.const_value is not None)
    if size > LARGE:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        replace_atomically(path, lambda beside: ir.save(model, beside))
