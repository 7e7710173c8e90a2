"""Small things that a new user trips over: who is blamed, what is counted, what is said twice."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import refused, run
from onnx import helper, numpy_helper
from small_models import conv_net, two_layers

from onnxprune import model_io
from onnxprune.pipeline.inspect import inspect
from onnxprune.pipeline.methods import catalogue


def detector() -> onnx.ModelProto:
    """Two scales, each with boxes, one objectness and classes in one tensor, as YOLO heads have."""
    rng, weights, nodes, scales = np.random.default_rng(0), [], [], []

    def conv(x: str, y: str, shape: tuple[int, int], stride: int = 1) -> str:
        weights.append(numpy_helper.from_array(rng.standard_normal((*shape, 1, 1)).astype(np.float32), f"w_{y}"))
        nodes.append(helper.make_node("Conv", [x, f"w_{y}"], [y], name=f"conv_{y}", strides=[stride] * 2))
        return y

    features = conv("image", "features", (8, 3))
    for scale, stride in (("fine", 1), ("coarse", 2)):
        heads = [
            conv(features, f"{scale}_{what}", (n, 8), stride) for what, n in (("box", 4), ("one", 1), ("class", 6))
        ]
        nodes.append(helper.make_node("Concat", heads, [f"{scale}_all"], axis=1))
        nodes.append(helper.make_node("Reshape", [f"{scale}_all", "flat"], [scale]))
        scales.append(scale)
    weights.append(numpy_helper.from_array(np.array([1, 11, -1]), "flat"))
    nodes += [helper.make_node("Concat", scales, ["joined"], axis=2),
              helper.make_node("Transpose", ["joined"], ["found"], perm=[0, 2, 1])]  # fmt: skip
    x = helper.make_tensor_value_info("image", 1, [1, 3, 4, 4])
    y = helper.make_tensor_value_info("found", 1, [1, 20, 11])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_classes_of_a_detector_are_kept_because_of_the_output() -> None:
    reasons = {weight.name: weight.pinned for weight in inspect(detector()).weights}
    for scale in ("fine", "coarse"):
        for what in ("box", "class"):
            assert "axis 0: graph output found" in reasons[f"w_{scale}_{what}"]


def test_compare_names_the_model_that_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound, damaged = tmp_path / "sound.onnx", tmp_path / "damaged.onnx"
    model_io.save(two_layers(16), sound)
    proto = onnx.load(sound)
    last = proto.graph.output[0].name
    proto.graph.node[-1].output[0] = "before"
    proto.graph.initializer.append(numpy_helper.from_array(np.array([7, 3]), "shape"))
    proto.graph.node.append(helper.make_node("Reshape", ["before", "shape"], [last]))
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(proto, damaged)
    assert refused(capsys, tmp_path, "compare", sound, damaged, status=1).startswith(f"onnxprune: '{damaged}': ")
    assert refused(capsys, tmp_path, "compare", damaged, sound).startswith(f"onnxprune: '{damaged}': ")


@pytest.mark.parametrize("what", ["inputs", "outputs"])
@pytest.mark.parametrize("command", ["compare", "verify"])
def test_models_of_other_names_are_not_compared(
    what: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    model_io.save(two_layers(16), first)
    proto = onnx.load(first)
    value = (proto.graph.input if what == "inputs" else proto.graph.output)[0]
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = "another" if name == value.name else name
    before, value.name = value.name, "another"
    onnx.save(proto, second)
    sentence = refused(capsys, tmp_path, command, first, second, status=1)
    assert f"the {what} differ: ['{before}'] in the" in sentence and "'another'" in sentence


def test_verify_names_the_types_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    model_io.save(two_layers(16), first)
    proto = onnx.load(first)
    name = proto.graph.output[0].name
    proto.graph.node[-1].output[0] = "before"
    proto.graph.node.append(helper.make_node("Cast", ["before"], [name], to=onnx.TensorProto.DOUBLE))
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(proto, second)
    sentence = refused(capsys, tmp_path, "verify", first, second, status=1)
    assert "(FLOAT)" in sentence and "(DOUBLE)" in sentence


def test_one_batch_size_is_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_io.save(two_layers(16), tmp_path / "free.onnx")
    proto = model_io.to_proto(two_layers(16))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(proto, tmp_path / "fixed.onnx")
    for name, words in (("free", "runs in 2 batch sizes, equals"), ("fixed", "loads and runs, equals")):
        assert run(tmp_path / f"{name}.onnx", "-s", 0.5, "--structure", "channels") == 0
        assert words in " ".join(capsys.readouterr().out.split())


def test_methods_say_which_of_them_need_pytorch() -> None:
    needs = {(entry.setting, entry.name): entry.needs for entry in catalogue()}
    assert needs["criterion", "taylor"] == "labels, PyTorch" and needs["criterion", "obd"] == "calibration, PyTorch"
    assert needs["criterion", "synflow"] == "PyTorch" and needs["criterion", "wanda"] == "calibration"
    assert needs["recover", "align"] == "calibration, PyTorch" and needs["recover", "least-squares"] == "calibration"


def test_a_criterion_without_pytorch_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model_io.save(two_layers(16), tmp_path / "net.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    said = refused(capsys, tmp_path, tmp_path / "net.onnx", "-s", 0.5, "--criterion", "synflow")
    assert "--criterion synflow needs PyTorch" in said and "onnxprune[retrain]" in said


def test_warnings_of_libraries_are_seen_with_verbose_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = model_io.to_proto(conv_net(16))
    weight = proto.graph.initializer[0]
    numbers = numpy_helper.to_array(weight).copy()
    numbers.flat[:3] = np.inf
    weight.CopyFrom(numpy_helper.from_array(numbers, weight.name))
    onnx.save(proto, tmp_path / "infinite.onnx")
    arguments = (tmp_path / "infinite.onnx", "-s", 0.5, "--criterion", "lamp", "--force", "--accept-unproved")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run(*arguments)
        assert not seen and "Warning" not in capsys.readouterr().err
        run(*arguments, "--verbose")
        assert not seen and "RuntimeWarning: " in capsys.readouterr().err


def test_no_sentence_ends_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    model_io.save(two_layers(16), tmp_path / "net.onnx")
    np.savez(tmp_path / "other.npz", y=np.zeros((4, 3), np.float32))
    attempts = (
        [tmp_path / "text.onnx", "-s", 0.5], ["inspect", tmp_path / "none.onnx"], [tmp_path / "net.onnx", "-s", 2],
        [tmp_path / "net.onnx", "-s", 0.5, "--inputs", tmp_path / "other.npz"],
        [tmp_path / "net.onnx", "-s", 0.5, "--calibration", tmp_path / "other.npz"],
        [tmp_path / "net.onnx", "-s", 0.5, "--data", tmp_path / "none.npz", "--retrain"],
    )  # fmt: skip
    for arguments in attempts:
        assert not re.search(r"\.\.(?!\.)|\.\)$", refused(capsys, tmp_path, *arguments).strip())
