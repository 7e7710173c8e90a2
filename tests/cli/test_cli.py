"""The command line as a user meets it: outputs, exit statuses, one sentence for everything that is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx
import pytest
from command_line import refused, run
from model_io_models import mlp, stored_external
from small_models import conv_net, graph

from onnxprune import model_io

TRAINED = Path(__file__).resolve().parents[2] / "models" / "digits_mlp.onnx"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    model_io.save(conv_net(64), path)
    return path


def test_prune_writes_beside_the_input(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = model.read_bytes()
    assert run(model, "--sparsity", 0.5, "--structure", "channels") == 0
    assert model.read_bytes() == before
    onnx.checker.check_model(str(model.with_name("net.pruned.onnx")), full_check=True)
    out = capsys.readouterr().out
    assert "verified in ONNX Runtime" in out and "latency" in out and "net.pruned.onnx" in out.replace("\n", "")


def test_zeros_are_not_sold_as_speed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(model, "--sparsity", 0.5, "--structure", "weights")
    assert "runs zeros no faster" in capsys.readouterr().out
    run(model, "--sparsity", 0.5, "--structure", "channels", "--force")
    assert "runs zeros no faster" not in capsys.readouterr().out


def test_json_is_all_that_is_printed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--sparsity", 0.5, "--json", "-o", model.with_name("o.onnx")) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert content["output"].endswith("o.onnx")
    assert {"before", "after", "removed_vs_masked", "latency_ratio"} <= set(content)


def test_dry_run_writes_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(model.parent.iterdir())
    assert run(model, "--sparsity", 0.5, "--dry-run") == 0
    assert set(model.parent.iterdir()) == before
    assert "no model was written" in capsys.readouterr().out


def test_verify_and_compare_after_prune(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = model.with_name("r.json")
    assert run(model, "-s", 0.5, "--structure", "channels", "--record", record) == 0
    pruned = model.with_name("net.pruned.onnx")
    capsys.readouterr()
    assert run("verify", model, pruned, "--record", record, "--json") == 0
    assert json.loads(capsys.readouterr().out)["removed_vs_masked"] < 1e-5
    assert run("compare", model, pruned, "--json") == 0
    assert json.loads(capsys.readouterr().out)["after"]["parameters"] > 0


def test_verify_of_what_cannot_be_proved_ends_with_status_1(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    proto = onnx.load(model)
    for number, tensor in enumerate(proto.graph.initializer):  # nothing tells which weight was which
        old, tensor.name = tensor.name, f"c{number}"
        for node in proto.graph.node:
            node.input[:] = [tensor.name if name == old else name for name in node.input]
    onnx.save(proto, tmp_path / "other.onnx")
    assert run("verify", model, tmp_path / "other.onnx") == 1
    out, err = capsys.readouterr()
    assert "nothing was proved" in out and err.startswith("onnxprune: nothing was proved")
    assert run("verify", model, tmp_path / "other.onnx", "--accept-unproved", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["proved"] is False and told["unproved"] and told["format"] == "onnxprune-verify/2"


def test_verify_finds_a_wrong_model(model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    model_io.save(graph("agraph (float[N,3,12,12] q) => (float[N,10] y) { a = Flatten(q) y = MatMul(a, w) }",
                        {"w": __import__("numpy").zeros((432, 10), "float32")}), other)  # fmt: skip
    assert "inputs differ" in refused(capsys, tmp_path, "verify", model, other, status=1)


def test_inspect(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", model, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert {g["units"] for g in content["groups"]} == {64}
    assert any("graph output" in reason for w in content["weights"] for reason in w["pinned"])
    assert run("inspect", model) == 0
    assert "channels" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["prune", "--help"], ["inspect", "-h"], ["--version"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 0
    assert capsys.readouterr().out.strip()


def test_sparsity_out_of_range(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--sparsity" in refused(capsys, model.parent, model, "--sparsity", 1.5)


def test_sparsity_missing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--sparsity" in refused(capsys, model.parent, model, "--structure", "channels")


def test_unknown_structure(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--structure" in refused(capsys, model.parent, model, "-s", 0.5, "--structure", "cubes")


def test_unknown_flag(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--sparsify" in refused(capsys, model.parent, model, "--sparsify", 0.5)


def test_a_pattern_that_matches_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'layer9*'" in refused(capsys, model.parent, model, "-s", 0.5, "--exclude", "layer9*")


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refused(capsys, tmp_path, tmp_path / "no.onnx", "-s", 0.5)


def test_not_a_protobuf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("this is no model")
    assert "text.onnx" in refused(capsys, tmp_path, path, "-s", 0.5)


def test_truncated_file(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_bytes(model.read_bytes()[:-1000])
    assert "net.onnx" in refused(capsys, model.parent, model, "-s", 0.5)


def test_missing_external_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored_external(tmp_path)
    for file in tmp_path.iterdir():
        if file != path:
            file.unlink()
    refused(capsys, tmp_path, path, "-s", 0.5)


def test_external_data_outside_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    proto = mlp()
    tensor = proto.graph.initializer[0]
    (tmp_path / "secret.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    (inner / "m.onnx").write_bytes(proto.SerializeToString())
    refused(capsys, tmp_path, inner / "m.onnx", "-s", 0.5)


def test_output_equal_to_input(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "input" in refused(capsys, model.parent, model, "-s", 0.5, "-o", model)
    assert "input" in refused(capsys, model.parent, model, "-s", 0.5, "-o", model, "--force")


def test_existing_output_needs_force(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.with_name("net.pruned.onnx").write_text("precious")
    assert "--force" in refused(capsys, model.parent, model, "-s", 0.5)
    assert run(model, "-s", 0.5, "--force") == 0


def test_unwritable_output(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, model.parent, model, "-s", 0.5, "-o", model.parent / "nowhere" / "o.onnx")
    if os.geteuid() != 0:
        folder = model.parent / "locked"
        folder.mkdir(mode=0o500)
        refused(capsys, model.parent, model, "-s", 0.5, "-o", folder / "o.onnx")


def test_unknown_domain_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [onnx.helper.make_node("Magic", ["x", "w"], ["y"], domain="com.example")]
    info = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [4, 4], [1.0] * 16)
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", info[:1], info[1:], [weight]),
        opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.example", 1)],
        ir_version=8,
    )
    path = tmp_path / "magic.onnx"
    path.write_bytes(proto.SerializeToString())
    assert "com.example::Magic" in refused(capsys, tmp_path, path, "-s", 0.5, status=1)


def test_wrong_data(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = TRAINED.with_suffix(".npz")
    refused(capsys, model.parent, model, "-s", 0.5, "--eval-data", data)
    refused(capsys, model.parent, model, "-s", 0.5, "--eval-data", model.parent / "no.npz")
