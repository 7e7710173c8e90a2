"""Saving: whole or not at all, never over the source, the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_io_models import mlp, stored, stored_external

from onnxprune import model_io
from onnxprune.errors import ModelError
from onnxprune.model_io import atomic, file_set, temporary
from onnxprune.runtime import make_session, run

X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)


def outputs(model: ir.Model | Path) -> np.ndarray:
    return next(iter(run(make_session(model, optimize="off"), {"x": X}).values()))


def leftovers(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name.startswith("."))


@pytest.mark.parametrize("external", [False, True])
def test_onnx_and_onnxruntime_read_what_was_saved(tmp_path: Path, external: bool) -> None:
    model = model_io.load_any(mlp())
    saved = model_io.save(model, tmp_path / "out.onnx", external=external)
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    np.testing.assert_array_equal(outputs(tmp_path / "out.onnx"), outputs(model))
    files = [saved.path] + ([saved.data_file] if saved.data_file else [])
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert saved.size == sum(file.stat().st_size for file in files)
    assert (saved.data_file is not None) == external


@pytest.mark.parametrize("make", [stored, stored_external])
def test_the_size_told_before_is_the_size_of_the_files(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    model = model_io.load(path)
    told = model_io.saved_size(model)
    (tmp_path / "there").mkdir()
    assert model_io.save(model, tmp_path / "there" / path.name).size == told


def test_types_of_initializers_are_not_written_a_second_time() -> None:
    text = """<ir_version: 8, opset_import: ["":17]>
    agraph (float[n, 2] x, bool flag) => (float[n, 2] y) <float[2, 2] w = {1, 0, 0, 1}> {
        h = MatMul(x, w)
        r = Relu(h)
        y = If(flag) <
            then_branch = first () => (float[n, 2] a) <float[2] b = {1, 2}> { a = Add(r, b) },
            else_branch = second () => (float[n, 2] c) { c = Identity(r) }>
    }"""
    model = model_io.load_any(onnx.parser.parse_model(text))
    proto = onnx.load_from_string(model_io.to_bytes(model))
    branches = [attribute.g for attribute in proto.graph.node[2].attribute]
    stored_names = {tensor.name for graph in (proto.graph, *branches) for tensor in graph.initializer}
    assert stored_names == {"w", "b"}
    assert not stored_names & {info.name for graph in (proto.graph, *branches) for info in graph.value_info}


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for external in (False, True):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir(exist_ok=True)
            model_io.save(model_io.load_any(mlp()), tmp_path / folder / "out.onnx", external=external, force=True)
        for file in (tmp_path / "a").iterdir():
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_external_data_comes_back_as_external_data_and_other_folders_are_fine(tmp_path: Path) -> None:
    model = model_io.load(stored_external(tmp_path))
    (tmp_path / "out").mkdir()
    saved = model_io.save(model, tmp_path / "out" / "small.onnx")
    shutil.rmtree(tmp_path / "weights.bin", ignore_errors=True)
    assert saved.data_file is not None and saved.data_file.parent == tmp_path / "out"
    np.testing.assert_array_equal(outputs(saved.path), outputs(model_io.load_any(mlp())))


def test_weights_near_the_protobuf_limit_go_out_by_themselves(tmp_path: Path) -> None:
    saved = model_io.save(model_io.load_any(mlp()), tmp_path / "out.onnx", external_threshold=1000)
    assert saved.data_file is not None
    np.testing.assert_array_equal(outputs(saved.path), outputs(model_io.load_any(mlp())))


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = model_io.load(stored_external(tmp_path))
    before = {name: id(value.const_value) for name, value in model.graph.initializers.items()}
    model_io.save(model, tmp_path / "a.onnx", external=False)
    model_io.save(model, tmp_path / "b.onnx", external=True)
    assert before == {name: id(value.const_value) for name, value in model.graph.initializers.items()}


def test_external_tensors_in_subgraphs_and_attributes_do_not_dangle(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.ones(512, np.float32).tobytes())

    def tensor(name: str) -> ir.ExternalTensor:
        return ir.ExternalTensor(
            "w.bin", 0, 2048, ir.DataType.FLOAT, shape=ir.Shape([512]), name=name, base_dir=tmp_path
        )

    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["":17]>
        g (float[512] x, bool c) => (float[512] y) {
            y = If (c) <then_branch = a () => (float[512] t) <float[512] s = {0}> { t = Add(x, s) },
                        else_branch = b () => (float[512] e) { k = Constant() e = Add(x, k) }> }""")
    model = ir.from_proto(proto)
    node = model.graph[0]
    then, other = (node.attributes[name].as_graph() for name in ("then_branch", "else_branch"))
    then.initializers["s"].const_value = tensor("s")
    constant = next(n for n in other if n.op_type == "Constant")
    constant.attributes["value"] = ir.AttrTensor("value", tensor("k"))
    (tmp_path / "out").mkdir()
    for external in (False, True):
        saved = model_io.save(model, tmp_path / "out" / f"{external}.onnx", external=external)
        for branch in (True, False):
            feeds = {"x": np.zeros(512, np.float32), "c": np.array(branch)}
            assert run(make_session(saved.path), feeds)["y"].sum() == 512


def test_initializers_added_to_an_old_model_become_inputs_too(tmp_path: Path) -> None:
    model = model_io.load_any(mlp(opset=8, ir_version=3))
    proto = model_io.to_proto(model)
    assert {value.name for value in proto.graph.input} == {"x", "w1", "b1", "w2", "b2"}
    onnx.checker.check_model(proto)


# --- what is refused -----------------------------------------------------------------------------------------------


def refusal(model: ir.Model, path: Path, **options: bool) -> str:
    existed = path.read_bytes() if path.is_file() else None
    with pytest.raises(ModelError) as early:
        model_io.check_output(path, source=model_io.source_of(model), **options)
    with pytest.raises(ModelError) as caught:
        model_io.save(model, path, **options)
    assert caught.value.exit_status == 2 and str(caught.value) == str(early.value)
    assert (path.read_bytes() if path.is_file() else None) == existed
    return str(caught.value)


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    path = stored_external(tmp_path)
    model = model_io.load(path)
    (tmp_path / "link.onnx").symlink_to(path)
    os.link(path, tmp_path / "hard.onnx")
    for name in ("model.onnx", "link.onnx", "hard.onnx", "weights.bin"):
        assert "is the input" in refusal(model, tmp_path / name, force=True)


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"precious")
    model = model_io.load_any(mlp())
    assert "--force" in refusal(model, tmp_path / "out.onnx")
    model_io.save(model, tmp_path / "out.onnx", force=True)
    assert model_io.load(tmp_path / "out.onnx")


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    model = model_io.load_any(mlp())
    assert "is a folder" in refusal(model, tmp_path)
    assert "no folder" in refusal(model, tmp_path / "none" / "out.onnx")
    (tmp_path / "file").write_bytes(b"")
    assert "no folder" in refusal(model, tmp_path / "file" / "out.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    assert "no permission" in refusal(model_io.load_any(mlp()), tmp_path / "closed" / "out.onnx")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the write fails in the middle."""
    model = model_io.load_any(mlp(width=4096))
    (tmp_path / "out.onnx").write_bytes(b"old")
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        for external in (False, True):
            with pytest.raises(ModelError, match="cannot be written"):
                model_io.save(model, tmp_path / "out.onnx", external=external, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == b"old"


def test_an_error_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    model = model_io.load(stored_external(tmp_path))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="cannot be written"):
        model_io.save(model, tmp_path / "out.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


# --- whole or not at all -------------------------------------------------------------------------------------------

WRITER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it otherwise
import sys
import numpy as np
from model_io_models import mlp
from onnxprune import model_io
model = model_io.load_any(mlp(width=int(sys.argv[2])))
print("ready", flush=True)
while True:
    for external in (False, True):
        model_io.save(model, sys.argv[1], force=True, external=external)
"""


def start_writer(path: Path, width: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(width)],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def assert_whole(path: Path, widths: set[int]) -> None:
    """The file at `path` is one of the models that were written, with the data that belong to it."""
    model = model_io.load(path)
    width = model.graph.initializers["b1"].shape[0]
    assert width in widths
    expected = model_io.load_any(mlp(width=width))
    for name, value in expected.graph.initializers.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), value.const_value.numpy())


def test_a_killed_writer_leaves_the_old_or_the_new_model(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    model_io.save(model_io.load_any(mlp(width=64)), path)
    moment = random.Random(0)
    for _ in range(6):
        process = start_writer(path, width=20_000)
        time.sleep(moment.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert_whole(path, {64, 20_000})


def test_a_terminated_writer_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    moment = random.Random(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start_writer(path, width=20_000)
        time.sleep(moment.uniform(0.01, 0.05))
        process.send_signal(number)
        process.wait(timeout=60)
        assert process.returncode != 0
        assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["create", "remove"])
def test_a_stop_beside_the_temporary_file_waits(
    number: int, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that comes when the file exists and no clause removes it yet, or just before that clause removes it."""
    real = getattr(temporary, moment)

    def stopped(*arguments: Any) -> Any:
        result = real(*arguments) if moment == "create" else None
        signal.raise_signal(number)
        return real(*arguments) if moment == "remove" else result

    monkeypatch.setattr(temporary, moment, stopped)
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, default)  # a shell in the background ignores some of them
    try:
        with (
            pytest.raises((SystemExit, KeyboardInterrupt)),
            atomic.temporary_beside(tmp_path / "out.onnx") as (_, file),
        ):
            file.write(b"half of it")
        assert list(tmp_path.iterdir()) == []
        assert signal.getsignal(number) == default
    finally:
        signal.signal(number, before)


def test_a_stop_between_the_names_of_a_set_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = file_set._name

    def stopped(file: file_set.Finished) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return real(file)

    monkeypatch.setattr(file_set, "_name", stopped)
    with pytest.raises(SystemExit), atomic.together():
        for name in ("a", "b"):
            with atomic.temporary_beside(tmp_path / name) as (path, file):
                file.write(name.encode())
                atomic.publish(path, tmp_path / name, replace=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a", "b": "b"}


def test_two_writers_of_one_path_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    writers = [start_writer(path, width) for width in (5_000, 9_000)]
    try:
        deadline = time.monotonic() + 3
        while not path.exists():
            time.sleep(0.01)
        while time.monotonic() < deadline:
            assert_whole(path, {5_000, 9_000})
    finally:
        for process in writers:
            process.kill()
            process.wait()
    assert_whole(path, {5_000, 9_000})


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.onnx"
    monkeypatch.setattr(model_io.saving, "check_output", lambda *_, **__: path.write_bytes(b"somebody else's"))
    with pytest.raises(ModelError, match="exists already"):
        model_io.save(model_io.load_any(mlp()), path)
    assert path.read_bytes() == b"somebody else's" and leftovers(tmp_path) == []


def test_the_data_of_a_replaced_model_are_reported_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    first = model_io.save(model_io.load_any(mlp()), path, external=True)
    second = model_io.save(model_io.load_any(mlp(width=128)), path, external=True, force=True)
    assert second.stale == (first.data_file,)
    assert first.data_file is not None and first.data_file.exists()
    same = model_io.save(model_io.load_any(mlp(width=128)), path, external=True, force=True)
    assert same.stale == () and same.data_file == second.data_file


# --- hashes --------------------------------------------------------------------------------------------------------


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = stored(tmp_path)
    assert model_io.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_key_of_external_data_is_found_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored_external(tmp_path)
    expected = model_io.sha256(path)
    assert expected != hashlib.sha256(path.read_bytes()).hexdigest()
    for size in (8, 13, 64, 1 << 20):
        monkeypatch.setattr(model_io.hashing, "_CHUNK", size)
        assert model_io.sha256(path) == expected


def test_the_hash_covers_external_data(tmp_path: Path) -> None:
    path = stored_external(tmp_path)
    before = model_io.sha256(path)
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert model_io.sha256(path) != before
    with pytest.raises(ModelError):
        model_io.sha256(tmp_path / "none.onnx")


# --- memory --------------------------------------------------------------------------------------------------------

ROUND_TRIP = """
import resource, sys
from onnxprune import model_io
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model_io.save(model_io.load(sys.argv[1]), sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024)
"""


@pytest.mark.parametrize(("external", "factor"), [(True, 0.3), (False, 1.3)])
def test_memory_stays_under_the_size_of_the_model(tmp_path: Path, external: bool, factor: float) -> None:
    """Embedded weights are held once; external ones go from file to file in small parts."""
    model = model_io.load_any(mlp(width=64))
    weights = {f"big{i}": np.full((1 << 20,), i, np.float32) for i in range(24)}  # 4 MiB each, 96 MiB in all
    for name, array in weights.items():
        model.graph.register_initializer(
            ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape([1 << 20]))
        )
    size = model_io.save(model, tmp_path / "in.onnx", external=external).size
    command = [sys.executable, "-c", ROUND_TRIP, str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx")]
    used = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert used < factor * size
