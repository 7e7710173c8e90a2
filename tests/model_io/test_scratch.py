"""Scratch files: ONNX Runtime maps weights from them, those on disk are written once, and none is left."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_io_models import mlp, stored_external

from onnxprune import model_io
from onnxprune.errors import ModelError
from onnxprune.graph.tensors import edited
from onnxprune.model_io import scratch


def weight(model: ir.Model) -> ir.Value:
    return max(model.graph.initializers.values(), key=lambda value: value.const_value.nbytes)  # type: ignore[union-attr]


def test_the_file_is_the_model_and_goes(tmp_path: Path) -> None:
    model = model_io.load(stored_external(tmp_path))
    with model_io.scratch_file(model) as path:
        read = onnx.load(path)
        assert len(list(path.parent.iterdir())) > 1
    name = str(weight(model).name)
    numbers = next(onnx.numpy_helper.to_array(t) for t in read.graph.initializer if t.name == name)
    np.testing.assert_array_equal(numbers, weight(model).const_value.numpy())  # type: ignore[union-attr]
    assert not path.exists()
    folder = path.parent
    del model, read
    gc.collect()
    assert not [file for file in folder.iterdir() if file.stat().st_size == numbers.nbytes]


def test_a_weight_on_disk_is_written_once_for_all_copies_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = scratch.write_data

    def counting(tensor: ir.TensorProtocol, file: model_io.serialise.Writer) -> None:
        written.append(str(tensor.name))
        write(tensor, file)

    monkeypatch.setattr(scratch, "write_data", counting)
    model = model_io.load(stored_external(tmp_path))
    value = weight(model)
    for each in (model, model.clone()):
        with model_io.scratch_file(each):
            pass
    assert written.count(str(value.name)) == 1
    assert value.const_value is not None
    value.const_value = edited(value.const_value, lambda array: array * 0, value.const_value.shape.numpy())
    with model_io.scratch_file(model) as path:
        read = onnx.load(path)
    assert written.count(str(value.name)) == 2
    assert not next(onnx.numpy_helper.to_array(t) for t in read.graph.initializer if t.name == value.name).any()


def test_a_weight_in_memory_is_written_as_it_is_now() -> None:
    model = model_io.load_any(mlp())
    value = weight(model)
    sums = []
    for factor in (1, 0):
        array = value.const_value.numpy()  # type: ignore[union-attr]
        value.const_value = ir.Tensor(array * factor, name=value.name)
        with model_io.scratch_file(model) as path:
            read = onnx.load(path)
        tensor = next(t for t in read.graph.initializer if t.name == value.name)
        sums.append(float(np.abs(onnx.numpy_helper.to_array(tensor)).sum()))
    assert sums[0] > 0 == sums[1]


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch, "write_data", full)
    refused = pytest.raises(ModelError, match="cannot be written: No space left on device")
    with refused, model_io.scratch_file(model_io.load_any(mlp())):
        pass


WRITES = """
import os, signal, sys
from onnxprune import model_io
with model_io.scratch_file(model_io.load(sys.argv[1])) as path:
    print(path.parent, flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def scratch_folder_of(model: Path, what: str, tmp_path: Path) -> Path:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITES, str(model), what]
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=what != "killed").stdout
    return Path(printed.splitlines()[0])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks")
def test_the_folder_goes_with_its_process_and_that_of_a_killed_one_with_the_next(tmp_path: Path) -> None:
    model = stored_external(tmp_path)
    assert not scratch_folder_of(model, "ends", tmp_path).exists()
    left = scratch_folder_of(model, "killed", tmp_path)
    assert left.exists()
    scratch_folder_of(model, "ends", tmp_path)
    assert not left.exists()


def test_a_process_that_was_forked_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.touch()
    remove = scratch._if_still(os.getpid(), Path.unlink)
    monkeypatch.setattr(os, "getpid", lambda: 0)
    remove(file)
    assert file.exists()
    monkeypatch.undo()
    remove(file)
    assert not file.exists()


def test_a_process_that_was_forked_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model = scratch._Folder(), model_io.load(stored_external(tmp_path))
    tensor = weight(model).const_value
    assert tensor is not None
    file, _ = folder.written(tensor)
    assert folder.written(tensor) == (file, True)
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    other, _ = folder.written(tensor)
    assert other.parent != file.parent
    shutil.rmtree(other.parent)
