"""Checkpoints: whole or not there, and no code in them."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_models import two_layers

from onnxprune.errors import DataError, ModelError
from onnxprune.training.checkpoint import (
    Checkpoint,
    ensure_whole,
    load_checkpoint,
    replace_atomically,
    save_checkpoint,
    save_model,
)


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.safetensors"
    tensors = {
        "mask": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "t": torch.ones(3, 2).T,
    }
    save_checkpoint(path, Checkpoint(tensors, {"step": 3, "best": None, "history": [{"loss": 0.5}]}))
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert loaded.state == {"step": 3, "best": None, "history": [{"loss": 0.5}]}
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in tensors.items())


def test_where_there_is_none_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "a.safetensors") is None


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, Checkpoint({"t": torch.ones(1)}, {"step": 1}))

    def fails(beside: Path) -> None:
        beside.write_bytes(b"half of it")
        raise OSError("disk full")

    with pytest.raises(ModelError, match="disk full"):
        replace_atomically(path, fails)
    loaded = load_checkpoint(path)
    assert loaded is not None and loaded.state == {"step": 1}
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"\xff" * 100])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(path)


def test_a_safetensors_file_of_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"t": torch.ones(1)}, str(path))
    with pytest.raises(DataError, match="is no checkpoint of this version"):
        load_checkpoint(path)


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_bit_that_flipped_is_noticed(tmp_path: Path, place: float) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, Checkpoint({"t": torch.arange(64.0), "h": torch.ones(8, dtype=torch.bfloat16)}, {"step": 1}))
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="checkpoint"):
        load_checkpoint(path)


def test_a_model_that_belongs_to_a_checkpoint_has_a_checksum(tmp_path: Path) -> None:
    hashes = save_model(tmp_path / "iteration-1.onnx", two_layers())
    ensure_whole(tmp_path, hashes)
    content = bytearray((tmp_path / "iteration-1.onnx").read_bytes())
    content[-1] ^= 1
    (tmp_path / "iteration-1.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"iteration-1\.onnx' is damaged"):
        ensure_whole(tmp_path, hashes)


def test_a_full_disk_is_a_sentence_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, Checkpoint({"t": torch.ones(1)}, {"step": 1}))
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(ModelError, match="cannot be written"):
            save_checkpoint(path, Checkpoint({"t": torch.ones(100_000)}, {"step": 2}))
        with pytest.raises(ModelError, match="cannot be written"):
            save_model(tmp_path / "iteration-1.onnx", two_layers(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    loaded = load_checkpoint(path)
    assert loaded is not None and loaded.state["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
