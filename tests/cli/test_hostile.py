"""Broken and hostile recipes, data and models: one sentence that names what is wrong, exit status 2, nothing written.

Each case is a name, words that the sentence must have, and a function that puts the file(s) into a folder.
"""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import refused
from model_io_models import mlp, stored_external
from onnx import TensorProto, helper, numpy_helper
from small_models import two_layers

from onnxprune import model_io

Write = Callable[[Path], object]


# --- recipes ---------------------------------------------------------------------------------------------------------

GOOD = "model = 'net.onnx'\nsparsity = 0.5\n"

RECIPES: dict[str, tuple[str | bytes, str]] = {
    "no value": (GOOD + "seed =\n", "line 3"),
    "no closing quote": (GOOD + "structure = 'weights\n", "recipe.toml' is no TOML"),
    "a key twice": (GOOD + "sparsity = 0.6\n", "line 3"),
    "a bracket too few": (GOOD + "exclude = ['a'\n", "recipe.toml"),
    "a control character": (GOOD + "exclude = ['\x00']\n", "line 3"),
    "not text": (b"\xff\xfe\x00m\x00o", "recipe.toml' is not a text file"),
    "a model": (mlp().SerializeToString(), "recipe.toml"),
    "deep nesting": (GOOD + "exclude = " + "[" * 50_000 + "]" * 50_000, "recipe.toml"),
    "deep keys": (GOOD + ".".join("a" * 3_000) + " = 1\n", "recipe.toml"),
    "unknown key": (GOOD + "sparsty = 0.5\n", "line 3: there is no setting 'sparsty'"),
    "unknown key of a table": (GOOD + "data = 'd.npz'\n[retrain]\nepoch = 3\n", "line 5: retrain.epoch"),
    "unknown table": (GOOD + "[training]\nepochs = 3\n", "line 3: there is no setting 'training'"),
    "a table for a number": ("model = 'net.onnx'\n[sparsity]\nshare = 0.5\n", "line 2: sparsity"),
    "a number for a table": (GOOD + "retrain = 3\n", "line 3: retrain"),
    "a text for a number": ("model = 'net.onnx'\nsparsity = 'half'\n", "line 2: sparsity"),
    "a number for a text": (GOOD + "structure = 3\n", "line 3: structure"),
    "a text for a list": (GOOD + "exclude = 'w1'\n", "line 3: exclude"),
    "numbers in a list of texts": (GOOD + "exclude = [1, 2]\n", "line 3: exclude"),
    "a date": (GOOD + "seed = 2026-01-01\n", "line 3: seed"),
    "out of range": ("sparsity = 1.0\nmodel = 'net.onnx'\n", "line 1: sparsity"),
    "negative": ("model = 'net.onnx'\nsparsity = -0.5\n", "line 2: sparsity"),
    "not a number": ("model = 'net.onnx'\nsparsity = nan\n", "line 2: sparsity"),
    "infinite": ("model = 'net.onnx'\nsparsity = inf\n", "line 2: sparsity"),
    "a huge seed": (GOOD + f"seed = {10**400}\n", "seed"),
    "a negative seed": (GOOD + "seed = -1\n", "line 3: seed"),
    "no such choice": (GOOD + "structure = 'cubes'\n", "line 3: structure"),
    "no such preset": (GOOD + "preset = 'best'\n", "line 3: --preset"),
    "no such kind": (GOOD + "kinds = ['toes']\n", "line 3: kinds"),
    "no such criterion": (GOOD + "criterion = 'luck'\n", "luck"),
    "no such limit": (GOOD + "require = ['beauty>=1']\n", "line 3: require"),
    "a limit without a number": (GOOD + "require = ['size<=small']\n", "line 3: require"),
    "rounding to nothing": (GOOD + "round_to = 0\n", "line 3: round_to"),
    "a number for a path": ("sparsity = 0.5\nmodel = 3\n", "line 2: model"),
    "a list for a path": (GOOD + "record = ['net.json']\n", "line 3: record"),
    "a path with a zero": ("sparsity = 0.5\nmodel = 'a\\u0000b'\n", "model"),
    "a very long path": (f"sparsity = 0.5\nmodel = '{'a' * 5000}'\n", "too long"),
    "the input as output": (GOOD + "output = 'net.onnx'\n", "input"),
    "the output as record": (GOOD + "output = 'o.onnx'\nrecord = 'o.onnx'\n", "--record"),
    "one file twice": (GOOD + "record = 'r'\nreport = 'r'\n", "--report"),
    "a folder as report": (GOOD + "report = '.'\n", "--report"),
    "a text for a switch": (GOOD + "allow_inexact = 'maybe'\n", "line 3: allow_inexact"),
    "retraining without data": (GOOD + "retrain = true\n", "--data"),
    "a setting of retraining alone": (GOOD + "survivors = 'reinit'\n", "survivors"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = RECIPES[name]
    model_io.save(two_layers(), tmp_path / "net.onnx")
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(content.encode() if isinstance(content, str) else content)
    sentence = refused(capsys, tmp_path, "run", recipe)
    assert words in sentence and len(sentence) < 2 * len(str(recipe)) + 500


def test_a_folder_as_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in refused(capsys, tmp_path, "run", tmp_path)


# --- data ------------------------------------------------------------------------------------------------------------


def npz(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name: np.asarray(array) for name, array in arrays.items()})
    return file.getvalue()


def npz_of(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("label.npy", zipfile.ZipFile(io.BytesIO(npz(l=LABEL))).read("l.npy"))
    return file.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n"


class Trap:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("hacked",)


X, LABEL = np.zeros((4, 8), np.float32), np.array([0, 1, 2, 3])
WHOLE = npz(x=X, label=LABEL)

DATA: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "data.npz"),
    "text": (b"not a zip", "data.npz"),
    "cut short": (WHOLE[: len(WHOLE) // 2], "data.npz"),
    "cut at the end": (WHOLE[:-10], "data.npz"),
    "damaged": (WHOLE[:100] + b"\xff" * 60 + WHOLE[160:], "data.npz"),
    "a pickle": (npz(x=np.array([Trap()], dtype=object), label=LABEL), "data.npz"),
    "one array": (WHOLE[2:], "data.npz"),
    "a member that is no array": (npz_of("x.npy", b"hello"), "data.npz"),
    "a huge array": (npz_of("x.npy", header("{'descr': '<f4', 'fortran_order': False, 'shape': (10**6, 10**6)}")), "x"),
    "a huge shape": (
        npz_of("x.npy", header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }")),
        "data.npz",
    ),
    "an unknown name": (npz(x=X, lable=LABEL), "'lable'"),
    "wrong name": (npz(z=X, w=X, label=LABEL), "'x'"),
    "wrong shape": (npz(x=X[:, :5], label=LABEL), "x"),
    "too many dimensions": (npz(x=X[:, :, None], label=LABEL), "x"),
    "texts": (npz(x=np.full((4, 8), "a"), label=LABEL), "x"),
    "complex numbers": (npz(x=X.astype(complex), label=LABEL), "x"),
    "not numbers": (npz(x=np.full((4, 8), np.nan, np.float32), label=LABEL), "x"),
    "infinite": (npz(x=np.full((4, 8), np.inf, np.float32), label=LABEL), "x"),
    "fewer labels": (npz(x=X, label=LABEL[:2]), "label"),
    "no samples": (npz(x=X[:0], label=LABEL[:0]), "data.npz"),
    "labels out of range": (npz(x=X, label=LABEL + 7), "label"),
    "negative labels": (npz(x=X, label=-LABEL), "label"),
    "labels as texts": (npz(x=X, label=np.array(list("abcd"))), "label"),
    "labels that are not numbers": (npz(x=X, label=np.full((4, 4), np.nan, np.float32)), "label"),
    "targets of a wrong shape": (npz(x=X, label=np.zeros((4, 3), np.float32)), "label"),
    "one label": (npz(x=X, label=np.int64(3)), "label"),
}


@pytest.mark.parametrize("flag", ["--eval-data", "--calibration"])
@pytest.mark.parametrize("name", DATA)
def test_data(
    name: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = DATA[name]
    model_io.save(two_layers(), tmp_path / "net.onnx")
    data = tmp_path / "data.npz"
    data.write_bytes(content)
    if flag == "--calibration" and "label" in words:
        pytest.skip("calibration reads no labels")
    assert words in refused(capsys, tmp_path, "net.onnx", "-s", 0.5, flag, data, "--quantize", "int8")


# --- models ----------------------------------------------------------------------------------------------------------


def proto(change: Callable[[onnx.ModelProto], object]) -> Write:
    def write(path: Path) -> None:
        model = mlp()
        change(model)
        path.write_bytes(model.SerializeToString())

    return write


def external(**changes: str | None) -> Write:
    """A model whose first external tensor has other entries; None removes one."""

    def write(path: Path) -> None:
        stored = stored_external(path.parent)
        model = onnx.load(str(stored), load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.external_data)
        entries = {entry.key: entry.value for entry in tensor.external_data} | changes
        del tensor.external_data[:]
        for key, value in entries.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)
        stored.unlink()
        path.write_bytes(model.SerializeToString())

    return write


def first(model: onnx.ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def cycle(model: onnx.ModelProto) -> None:
    nodes = model.graph.node
    nodes[0].input[0] = nodes[-1].output[0]


def deep(path: Path) -> None:
    """Graphs in graphs, deeper than a protobuf may be nested."""

    def field(number: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(300):
        graph = field(1, field(5, field(6, graph)))  # node, attribute, graph
    path.write_bytes(mlp().SerializeToString() + field(7, graph))


def noise(seed: int) -> Write:
    return lambda path: path.write_bytes(random.Random(seed).randbytes(4096))


def flipped(seed: int) -> Write:
    """A model with some bytes that are others: it may still be one, but nothing may crash."""

    def write(path: Path) -> None:
        content = bytearray(mlp().SerializeToString())
        draw = random.Random(seed)
        for _ in range(8):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(bytes(content))

    return write


MODELS: dict[str, tuple[Write, str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "a folder": (lambda path: path.mkdir(), "not a file"),
    "text": (lambda path: path.write_text("hello"), "net.onnx"),
    "noise": (noise(0), "net.onnx"),
    "other noise": (noise(1), "net.onnx"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "net.onnx"),
    "JSON": (lambda path: path.write_text(json.dumps({"irVersion": 8})), "net.onnx"),
    "graphs in graphs": (deep, "net.onnx"),
    "a cycle": (proto(cycle), "cycle"),
    "a node that reads itself": (
        proto(lambda m: m.graph.node[0].input.__setitem__(0, m.graph.node[0].output[0])),
        "cycle",
    ),
    "bytes too few": (proto(lambda m: setattr(first(m), "raw_data", first(m).raw_data[:-4])), "damaged"),
    "bytes too many": (proto(lambda m: setattr(first(m), "raw_data", first(m).raw_data + bytes(4))), "damaged"),
    "numbers too few": (
        proto(lambda m: (first(m).ClearField("raw_data"), first(m).float_data.extend([1.0]))),
        "net.onnx",
    ),
    "no numbers": (proto(lambda m: first(m).ClearField("raw_data")), "net.onnx"),
    "gigantic dimensions": (proto(lambda m: first(m).dims.__setitem__(0, 2**62)), "net.onnx"),
    "gigantic dimensions without data": (
        proto(lambda m: (first(m).ClearField("raw_data"), first(m).dims.__setitem__(0, 2**62))),
        "net.onnx' is damaged",
    ),
    "a gigantic ConstantOfShape": (
        proto(
            lambda m: (
                m.graph.initializer.append(numpy_helper.from_array(np.array([2**40, 2**20]), "s")),
                m.graph.node.insert(0, helper.make_node("ConstantOfShape", ["s"], ["big"])),
                m.graph.node.append(helper.make_node("Add", [m.graph.node[-1].output[0], "big"], ["sum"])),
                setattr(m.graph.output[0], "name", "sum"),
            )
        ),
        "memory",
    ),
    "a gigantic input": (
        proto(lambda m: m.graph.input[0].type.tensor_type.shape.dim.__getitem__(0).__setattr__("dim_value", 2**50)),
        "memory",
    ),
    "negative dimensions": (proto(lambda m: first(m).dims.__setitem__(0, -1)), "negative dimension"),
    "an unknown element type": (proto(lambda m: setattr(first(m), "data_type", 999)), "net.onnx"),
    "an undefined element type": (proto(lambda m: setattr(first(m), "data_type", 0)), "net.onnx"),
    "an output twice": (
        proto(lambda m: m.graph.node[1].output.__setitem__(0, m.graph.node[0].output[0])),
        "net.onnx",
    ),
    "nodes without outputs": (proto(lambda m: m.graph.node[0].ClearField("output")), "net.onnx"),
    "no graph": (proto(lambda m: m.ClearField("graph")), "net.onnx"),
    "no nodes": (proto(lambda m: m.graph.ClearField("node")), "net.onnx"),
    "no outputs": (proto(lambda m: m.graph.ClearField("output")), "At least one output"),
    "no inputs": (proto(lambda m: m.graph.ClearField("input")), "net.onnx"),
    "a missing opset": (proto(lambda m: m.ClearField("opset_import")), "net.onnx"),
    "a far opset": (proto(lambda m: setattr(m.opset_import[0], "version", 999)), "opset 999"),
    "a negative opset": (proto(lambda m: setattr(m.opset_import[0], "version", -3)), "net.onnx"),
    "no such operator": (proto(lambda m: setattr(m.graph.node[0], "op_type", "Frobnicate")), "Frobnicate"),
    "a name with a line break": (
        proto(lambda m: (m.graph.node[0].input.__setitem__(0, "a\nb'c[red]\x1b[31m"),)),
        "produced nowhere",
    ),
    "an attribute of a wrong type": (
        proto(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("alpha", "much"))),
        "alpha",
    ),
    "weights that do not fit": (
        proto(lambda m: first(m).CopyFrom(numpy_helper.from_array(np.zeros((3, 3), np.float32), first(m).name))),
        "Dimension mismatch",
    ),
    "data missing": (external(location="none.bin"), "missing"),
    "data too short": (external(offset=str(2**40)), "truncated"),
    "data at an absolute path": (external(location="/etc/passwd"), "absolute path"),
    "data outside": (external(location="../../etc/passwd"), "out of the model's folder"),
    "data in a folder": (external(location="."), "not a regular file"),
    "data with a line break": (external(location="a\nb"), "missing"),
    "data with a very long name": (external(location="a" * 300), "missing"),
    "data without a file": (external(location=None), "names no file"),
    "a negative offset": (external(offset="-8"), "net.onnx"),
    "a negative length": (external(length="-8"), "net.onnx"),
    "an offset that is no number": (external(offset="much"), "unreadable offset"),
    "a wrong length": (external(length="12"), "states 12"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, words = MODELS[name]
    path = tmp_path / "net.onnx"
    write(path)
    sentence = refused(capsys, tmp_path, path, "-s", 0.5)
    assert words in sentence and len(sentence) < 3 * len(str(path)) + 700
