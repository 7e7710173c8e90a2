"""Checkpoints: whole or not there, and no code in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from onnxprune.errors import DataError
from onnxprune.training.checkpoint import Checkpoint, load_checkpoint, replace_atomically, save_checkpoint


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

    with pytest.raises(OSError, match="disk full"):
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
    with pytest.raises(DataError, match="is no checkpoint of onnxprune"):
        load_checkpoint(path)
