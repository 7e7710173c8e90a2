"""The first ten minutes: what a new user types before reading anything."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import refused, run
from onnx import helper, numpy_helper
from small_models import conv_net, two_layers

from onnxprune import model_io
from onnxprune.cli import console as cli_console
from onnxprune.cli.console import SafeConsole, line_of_stage, stages
from onnxprune.pipeline.version import version
from onnxprune.report.text import cut_middle, readable_name
from onnxprune.runtime.countdown import Portion, time_left
from onnxprune.training.progress import Event, Ticker, describe

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    model_io.save(conv_net(64), path)
    return path


def process(*arguments: object, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "onnxprune", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.run(command, input=stdin, capture_output=True, env=environment)


def test_alone_it_prints_a_short_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    printed = capsys.readouterr()
    assert "Usage" in printed.out and "inspect" in printed.out and not printed.err


def test_a_model_alone_is_inspected_and_three_commands_are_proposed(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(model.parent.iterdir())
    assert run(model) == 0
    out = capsys.readouterr().out
    commands = [line.strip() for line in out.splitlines() if line.strip().startswith("onnxprune ")]
    assert len(commands) == 3 and "multiply-adds" in out and "--structure channels" in commands[0]
    assert set(model.parent.iterdir()) == before


@pytest.mark.parametrize("name", ["digits_mlp", "digits_resnet"])
def test_each_proposed_command_runs_as_it_is_printed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(MODELS / f"{name}.onnx", "a model.onnx")
    samples = dict(np.load(MODELS / f"{name}.npz"))
    np.savez("labelled.npz", **{key: array[:32] for key, array in samples.items()})
    np.savez("inputs.npz", **{key: array[:32] for key, array in samples.items() if key != "label"})
    assert run("a model.onnx") == 0
    printed = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line)[1:] for line in printed if line.strip().startswith("onnxprune 'a model.onnx' -o")]
    assert len(commands) == 3
    for command in commands:
        assert run(*command) == 0, capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"a model.onnx"} | {command[2] for command in commands}


def test_units_are_not_proposed_where_none_can_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A single layer has inputs and outputs only."""
    x, y = (helper.make_tensor_value_info(name, 1, ["N", 32]) for name in "xy")
    weights = numpy_helper.from_array(np.ones((32, 32), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "one.onnx"
    )
    assert run(tmp_path / "one.onnx") == 0
    printed = capsys.readouterr().out
    assert "--quantize int8" in printed and "--structure channels" not in printed


def test_a_model_alone_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refused(capsys, tmp_path, tmp_path / "none.onnx")


@pytest.mark.parametrize("share", ["5o%", "%", "150%", "x"])
def test_a_share_that_is_none_is_refused(share: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--sparsity" in refused(capsys, model.parent, model, "-s", share)


def test_what_a_proposal_should_bring_is_what_it_brings(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--json") == 0
    faster, smaller, _ = json.loads(capsys.readouterr().out)["proposals"]
    sparsity = faster["command"].split("--sparsity ")[1].split()[0]
    assert run(model, "-s", sparsity, "--structure", "channels", "--json", "-o", model.with_name("a.onnx")) == 0
    measured = json.loads(capsys.readouterr().out)
    share = measured["after"]["macs"] / measured["before"]["macs"]
    assert f"about {share:.0%} of the multiply-adds" in faster["brings"]
    assert run(model, "-s", 0.9, "--pack", "--json", "-o", model.with_name("b.onnx")) == 0
    size = model.with_name("b.onnx").stat().st_size / model.stat().st_size
    promised = float(smaller["brings"].split("about ")[1].split("%")[0]) / 100
    assert promised == pytest.approx(size, abs=0.1)


def test_a_model_of_trees_says_that_it_holds_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0], nodes_values=[0.5, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 2.0],
    )  # fmt: skip
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", ["N", 2]), ("y", ["N", 1]))]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    proto = helper.make_model(helper.make_graph([trees], "g", value[:1], value[1:]), opset_imports=opsets, ir_version=8)
    path = tmp_path / "trees.onnx"
    path.write_bytes(proto.SerializeToString())
    for arguments in ([path], ["inspect", path]):
        assert run(*arguments) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "no weights that can be pruned" in out and "TreeEnsembleRegressor (5)" in out


def test_version_and_quiet(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--version", "-V"):
        assert run(flag) == 0
        assert capsys.readouterr().out.strip() == version()
    assert run(model, "-s", 0.5, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert "exists" in refused(capsys, model.parent, "-q", model, "-s", 0.5)
    assert run("inspect", model, "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out)["groups"]


def test_verbose_is_a_log_that_others_can_take_too(
    model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="onnxprune"):
        assert run(model, "-s", 0.5, "--force", "-v") == 0
    assert "info: analyse: " in capsys.readouterr().err
    assert any(record.getMessage().startswith("verify: ") for record in caplog.records)
    assert run(model, "-s", 0.5, "--force") == 0
    assert "info:" not in capsys.readouterr().err


def test_several_models_and_a_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        model_io.save(two_layers(16), tmp_path / f"{name}.onnx")
    out = tmp_path / "out"
    assert run(tmp_path / "*.onnx", "-o", out, "-s", "50%", "--record", tmp_path / "records") == 0
    assert {p.name for p in out.iterdir()} == {"a.onnx", "b.onnx"}
    assert {p.name for p in (tmp_path / "records").iterdir()} == {"a.json", "b.json"}
    assert run(tmp_path / "a.onnx", tmp_path / "b.onnx", "-s", 0.5) == 0
    assert (tmp_path / "a.pruned.onnx").is_file() and (tmp_path / "b.pruned.onnx").is_file()
    capsys.readouterr()
    assert "no file matches" in refused(capsys, tmp_path, tmp_path / "*.pb", "-s", 0.5)
    assert "folder" in refused(capsys, tmp_path, tmp_path / "?.onnx", "-s", 0.5, "-o", tmp_path / "one.onnx")
    again = refused(capsys, tmp_path, tmp_path / "a.onnx", out / "a.onnx", "-s", 0.5, "-o", tmp_path / "new")
    assert "two models are called 'a.onnx'" in again


def test_of_several_models_one_that_fails_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.onnx").write_text("no model")
    model_io.save(two_layers(16), tmp_path / "b.onnx")
    assert run(tmp_path / "a.onnx", tmp_path / "b.onnx", "-o", tmp_path / "out", "-s", 0.5) == 2
    assert "a.onnx" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.onnx"]


def test_one_model_into_a_folder_that_exists(model: Path) -> None:
    (model.parent / "out").mkdir()
    assert run(model, "-s", 0.5, "-o", model.parent / "out") == 0
    assert (model.parent / "out" / "net.onnx").is_file()


def test_a_name_with_a_slash_is_a_folder_and_so_is_that_of_a_pattern(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model.parent
    assert run(model, "-s", 0.5, "-o", f"{folder}/made/", "--save-recipe", folder / "run.toml") == 0
    assert (folder / "made" / "net.onnx").is_file()
    assert run("run", folder / "run.toml", "--force") == 0
    assert run(folder / "ne*.onnx", "-s", 0.5, "-o", folder / "one") == 0
    assert [path.name for path in (folder / "one").iterdir()] == ["net.onnx"]
    (folder / "recipe.toml").write_text('model = "net.onnx"\nsparsity = 0.5\noutput = "again/"\n')
    assert run("run", folder / "recipe.toml") == 0
    assert (folder / "again" / "net.onnx").is_file()
    capsys.readouterr()
    assert "its folder does not exist" in refused(capsys, folder, model, "-s", 0.5, "-o", folder / "no" / "out.onnx")
    assert "its folder does not exist" in refused(capsys, folder, model, "-s", 0.5, "-o", f"{folder}/no/more/")


@pytest.mark.parametrize("flags", [["--sparsity", "50%"], ["--sparsity", "2x"], ["-s", "0.5"]])
def test_a_share_in_each_of_its_forms(flags: list[str], model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, *flags, "--json", "--force") == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["sparsity"] == 0.5


@pytest.mark.parametrize("wanted", ["50%", "0.5x", "2x", "0.5"])
def test_a_target_in_each_of_its_forms(wanted: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--structure", "channels", "--target-macs", wanted, "--round-to", 1, "--json", "--force") == 0
    assert json.loads(capsys.readouterr().out)["target"]["wanted"] == 0.5


def test_a_model_through_standard_input_and_output(model: Path) -> None:
    content = model.read_bytes()
    done = process("-", "-o", "-", "-s", 0.5, "--structure", "channels", stdin=content)
    assert done.returncode == 0, done.stderr
    pruned = onnx.load_model_from_string(done.stdout)
    onnx.checker.check_model(pruned)
    assert len(done.stdout) < 0.8 * len(content) and b"verified" in done.stderr
    assert b"standard input" in done.stderr and b"wrote standard output" in done.stderr and b"/tmp" not in done.stderr
    looked = process("inspect", "-", "--json", stdin=content)
    assert json.loads(looked.stdout)["groups"]
    for arguments in (["-", "-s", 0.5], ["-", "-s", 0.5, "-o", "-", "--json"]):
        wrong = process(*arguments, stdin=content)
        assert wrong.returncode == 2 and not wrong.stdout and wrong.stderr.count(b"\n") == 1
    assert b"no model" in process("inspect", "-").stderr
    for arguments in (["-", "-s", 0.5, "-o", "-"], ["inspect", "-"]):
        assert process(*arguments, stdin=b"text").stderr.startswith(b"onnxprune: standard input is not a protobuf")


@pytest.mark.parametrize(
    ("line", "completed"),
    [("onnxprune ins", "inspect"), ("onnxprune model.onnx --spars", "--sparsity"), ("onnxprune inspect --al", "--all")],
)
def test_shell_completion(line: str, completed: str) -> None:
    words = line.split(" ")
    environment = {
        "_ONNXPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }  # fmt: skip
    done = process(**environment)
    assert completed in done.stdout.decode().split()


def test_completion_installs(tmp_path: Path) -> None:
    done = process("--install-completion", "bash", HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".bash_completions" / "onnxprune.sh").is_file()


def test_numbered_weights_are_shown_by_their_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert readable_name("onnx::Conv_497[0]", {"onnx::Conv_497": "/layer1/Conv"}) == "/layer1/Conv[0]"
    assert readable_name("fc.weight[0]", {"fc.weight": "/fc/Gemm"}) == "fc.weight[0]"
    proto = model_io.to_proto(two_layers(16))
    weight = proto.graph.node[0].input[1]
    for tensor in proto.graph.initializer:
        if tensor.name == weight:
            tensor.name = "497"
    proto.graph.node[0].input[1], proto.graph.node[0].name = "497", "/block/first/MatMul"
    path = tmp_path / "numbered.onnx"
    path.write_bytes(proto.SerializeToString())
    assert run("inspect", path) == 0
    assert "/block/first/MatMul[" in capsys.readouterr().out


def test_many_groups_are_summarised_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(25):
        weights.append(numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), f"w{i}"))
        nodes += [
            helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"]),
            helper.make_node("Relu", [f"m{i}"], [f"r{i}"]),
        ]
        last = f"r{i}"
    info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 8]) for n in ("x", last)]
    proto = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], weights), ir_version=8,
                              opset_imports=[helper.make_opsetid("", 17)])  # fmt: skip
    path = tmp_path / "deep.onnx"
    path.write_bytes(proto.SerializeToString())
    assert run("inspect", path) == 0
    short = capsys.readouterr().out
    assert "24 groups of " in short and ": 192 units" in short and "24 x 8" in short
    assert "every group with --all" in short
    assert short.index("24 groups") < short.index("w0[")
    assert run("inspect", path, "--all") == 0
    assert "w23[1]" in capsys.readouterr().out and "w23[1]" not in short


def test_long_names_are_cut_in_the_middle() -> None:
    assert cut_middle("/model/layers.11/mlp/down_proj/MatMul", 21) == "/model/lay…roj/MatMul"
    assert cut_middle("short", 21) == "short"


def test_a_training_shows_a_bar_and_the_time_left_on_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Event(10, 12, 3000, 4000, 0.12345, "my_metrics:accuracy", 0.98765, 0.987, 3599)
    screen = io.StringIO()
    terminal = SafeConsole(file=screen, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(cli_console, "errors", terminal)
    with stages("a/very/long/folder/of/models/model_of_a_user.onnx") as tell:
        tell(Portion(describe(event), event.step / event.steps))
    lines = [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", screen.getvalue()) if "loss" in line]
    assert lines and all(len(line) <= 80 for line in lines)
    assert "retrain 10/12  accuracy 0.9877  loss 0.123  59:59 left ━━━━━━━──  75%" in lines[-1]


def test_a_stage_without_a_share_has_no_bar() -> None:
    assert line_of_stage("model.onnx", "load", 80) == "model.onnx: load"
    assert not isinstance("load", Portion)


def test_the_time_left_counts_from_where_a_training_went_on() -> None:
    ticker = Ticker()
    assert np.isnan(ticker.left(90, 100))
    ticker.start -= 8.0
    assert ticker.left(98, 100) == pytest.approx(2.0, abs=0.1)
    assert [time_left(seconds) for seconds in (9, 190, 3790)] == ["0:09 left", "3:10 left", "1:03:10 left"]
