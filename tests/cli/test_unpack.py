"""``--pack``, ``--sparse-initializers``, ``--require`` and ``onnxprune unpack`` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import refused, run
from small_models import conv_net, graph, random

from onnxprune import model_io

TRAINED = Path(__file__).resolve().parents[2] / "models" / "digits_mlp.onnx"


@pytest.mark.parametrize("flags", [["--pack"], ["--pack", "smallest"], ["--sparse-initializers"]])
def test_unpack_gives_the_pruned_model_back(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, packed, again = (tmp_path / f"{name}.onnx" for name in ("plain", "packed", "again"))
    assert run(TRAINED, "-s", 0.9, "-o", plain) == 0
    assert run(TRAINED, "-s", 0.9, "-o", packed, *flags) == 0
    assert packed.stat().st_size < 0.5 * plain.stat().st_size
    capsys.readouterr()
    assert run("unpack", packed, "-o", again, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["after_bytes"] == again.stat().st_size
    a, b = (model_io.load(p).graph.initializers for p in (plain, again))
    assert {n: v.const_value.tobytes() for n, v in a.items()} == {n: v.const_value.tobytes() for n, v in b.items()}


def test_a_packed_model_is_pruned_only_once_it_is_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(TRAINED, "-s", 0.9, "-o", tmp_path / "packed.onnx", "--pack") == 0
    capsys.readouterr()
    packed = tmp_path / "packed.onnx"
    for command in ([packed, "-s", 0.9], ["inspect", packed]):
        assert "onnxprune unpack" in refused(capsys, tmp_path, *command)


def test_it_is_told_why_nothing_could_be_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = graph("agraph (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", {"w": random(64, 64)}, opset=10)
    model_io.save(model, tmp_path / "old.onnx")
    assert run(tmp_path / "old.onnx", "-s", 0.9, "--pack") == 0
    assert "nothing was packed: the model's opset is 10; decoders need 11" in " ".join(capsys.readouterr().out.split())


def test_unpack_names_its_output_after_the_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path / "small.onnx"
    run(TRAINED, "-s", 0.9, "--pack", "-o", packed)
    assert run("unpack", packed) == 0
    assert (tmp_path / "small.unpacked.onnx").is_file()
    capsys.readouterr()
    assert "--force" in refused(capsys, tmp_path, "unpack", packed)


def test_there_must_be_something_to_unpack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    model_io.save(conv_net(), path)
    assert "nothing to unpack" in refused(capsys, tmp_path, "unpack", path)
    refused(capsys, tmp_path, "unpack", tmp_path / "no.onnx")


def test_a_missed_limit_writes_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    model_io.save(conv_net(64), path)
    flags = ("-s", 0.5, "--structure", "channels", "--require", "parameters<=0.1")
    message = refused(capsys, tmp_path, path, *flags, status=1)
    assert "parameters is 0." in message and "wanted <= 0.1" in message


def test_a_limit_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    model_io.save(conv_net(), path)
    assert "--require" in refused(capsys, tmp_path, path, "-s", 0.5, "--require", "small")
    assert "--eval-data" in refused(capsys, tmp_path, path, "-s", 0.5, "--require", "metric_drop<=0.1")
