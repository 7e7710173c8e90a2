"""``verify ORIGINAL PRUNED``: what two files, or files and a record, prove; tampered files do not pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser
from small_models import conv_net, random, two_layers

import onnxprune
from onnxprune import model_io
from onnxprune.errors import VerificationError
from onnxprune.pipeline.check import verify as check
from onnxprune.pipeline.matching import recovered
from onnxprune.pipeline.record import load_record

RESNET_FILE = Path(__file__).resolve().parents[2] / "models" / "digits_resnet.onnx"
MLP_FILE = Path(__file__).resolve().parents[2] / "models" / "digits_mlp.onnx"


def files(folder: Path, *, structure: str = "channels", kind: str = "layers") -> tuple[Path, Path, Path]:
    """An original, what pruning made of it, and the record."""
    model = two_layers(64) if kind == "layers" else conv_net(64)
    original, pruned, record = folder / "original.onnx", folder / "pruned.onnx", folder / "record.json"
    model_io.save(model, original)
    result = onnxprune.prune(original, sparsity=0.5, structure=structure, latency=False)
    onnxprune.save(result, pruned, record=record)
    text = record.read_text()
    record.write_text(text.replace(f'"sha256": "{model_io.sha256(pruned)}"', '"sha256": null'))
    return original, pruned, record


def numbers(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def change_floats(proto: onnx.ModelProto, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Give each float initializer other numbers."""
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(array), np.float32), tensor.name))


def other_operator(proto: onnx.ModelProto) -> None:
    next(node for node in proto.graph.node if node.op_type == "Relu").op_type = "Sigmoid"


def one_weight_too(proto: onnx.ModelProto) -> None:
    other_operator(proto)
    array = numpy_helper.to_array(numbers(proto, "w2")).copy()
    array.flat[0] = np.nextafter(array.flat[0], np.float32(9))
    numbers(proto, "w2").CopyFrom(numpy_helper.from_array(array, "w2"))


def permuted(proto: onnx.ModelProto) -> None:
    array = numpy_helper.to_array(numbers(proto, "w2"))[::-1].copy()
    numbers(proto, "w2").CopyFrom(numpy_helper.from_array(array, "w2"))


def all_zero(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        array = np.zeros_like(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@pytest.mark.parametrize("kind", ["layers", "convolutions"])
def test_two_files_alone_tell_the_cut(kind: str, tmp_path: Path) -> None:
    original, pruned, _ = files(tmp_path, kind=kind)
    found = check(original, pruned)
    assert found.removed_vs_masked is not None and found.removed_vs_masked < 1e-5
    assert found.cut > 2 and found.identical > 3 and found.changed == 0


@pytest.mark.parametrize("with_record", [True, False])
def test_after_recovery_two_files_tell_what_was_cut_and_what_changed(with_record: bool, tmp_path: Path) -> None:
    original, pruned, record = tmp_path / "original.onnx", tmp_path / "pruned.onnx", tmp_path / "record.json"
    model_io.save(conv_net(64), original)
    data = {"x": np.random.default_rng(0).standard_normal((32, 3, 12, 12)).astype(np.float32)}
    result = onnxprune.prune(original, sparsity=0.5, structure="channels", calibration=data, latency=False)
    onnxprune.save(result, pruned, record=record)
    found = check(original, pruned, record if with_record else None)
    assert found.removed_vs_masked is not None and found.removed_vs_masked < 1e-5
    assert found.cut >= len(result.kept) > 0 and found.changed > 0
    states = {constant.name: constant for constant in found.constants}
    for name, axes in result.kept.items():
        assert states[name].is_cut
        for axis, indices in axes.items():
            assert states[name].after is not None and states[name].after[int(axis)] == len(indices)
    text = " ".join(found.lines())
    assert "new numbers:" in text and "cut:" in text


@pytest.mark.parametrize("kind", ["layers", "convolutions"])
def test_units_are_matched_by_likeness_where_every_number_changed(kind: str, tmp_path: Path) -> None:
    original, pruned, record = files(tmp_path, kind=kind)
    proto, rng = onnx.load(pruned), np.random.default_rng(0)
    change_floats(proto, lambda array: array + 0.05 * float(array.std()) * rng.standard_normal(array.shape))
    onnx.save(proto, pruned)
    before, after = model_io.load(original), model_io.load(pruned)
    kept = load_record(record).kept
    assert recovered(before, after)[1] == kept
    found = check(original, pruned)
    assert found.removed_vs_masked is not None and found.changed >= len(kept)


@pytest.mark.parametrize("kind", ["layers", "convolutions"])
def test_a_file_of_other_numbers_throughout_is_not_taken_for_a_cut(kind: str, tmp_path: Path) -> None:
    original, pruned, _ = files(tmp_path, kind=kind)
    proto, rng = onnx.load(pruned), np.random.default_rng(5)

    def other(array: np.ndarray) -> np.ndarray:
        drawn = (array.std() + 0.1) * rng.standard_normal(array.shape)
        return np.abs(drawn) if drawn.ndim == 1 else drawn  # variances

    change_floats(proto, other)
    onnx.save(proto, pruned)
    found = check(original, pruned)
    assert not found.proved and found.removed_vs_masked is None


@pytest.mark.parametrize("structure", ["blocks", "blocks+channels"])
def test_two_files_alone_tell_the_residual_blocks_that_went(structure: str, tmp_path: Path) -> None:
    original, pruned = RESNET_FILE, tmp_path / "pruned.onnx"
    result = onnxprune.prune(original, sparsity=0.3, structure="blocks", latency=False)
    if structure == "blocks+channels":
        onnxprune.save(result, tmp_path / "shallow.onnx")
        result = onnxprune.prune(tmp_path / "shallow.onnx", sparsity=0.3, structure="channels", latency=False)
    onnxprune.save(result, pruned)
    found = check(original, pruned)
    assert found.removed_vs_masked is not None and found.removed_vs_masked < 1e-4
    proto = onnx.load(pruned)
    other_operator(proto)
    onnx.save(proto, pruned)
    with pytest.raises(VerificationError):
        check(original, pruned)


def test_numbers_in_another_order_do_not_pass(tmp_path: Path) -> None:
    original, pruned, record = files(tmp_path)
    proto = onnx.load(pruned)
    permuted(proto)
    onnx.save(proto, pruned)
    for known in (record, None):
        with pytest.raises(VerificationError, match="another order.*'w2'"):
            check(original, pruned, known)


def test_a_change_is_told_in_the_body_that_it_lies_in(tmp_path: Path) -> None:
    """Both branches of an If hold a weight of the same name; one of them changes."""
    weights = [random(8, 8) for _ in range(2)]

    def branch(name: str, weight: np.ndarray) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        node = helper.make_node("MatMul", ["x", "w"], [name])
        return helper.make_graph([node], name, [], [out], [numpy_helper.from_array(weight, "w")])

    def written(path: Path, first: np.ndarray, second: np.ndarray) -> Path:
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch("t", first), else_branch=branch("e", second))
        graph = helper.make_graph(
            [node],
            "g",
            [
                helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 8]),
                helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
            ],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 8])],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path

    original = written(tmp_path / "a.onnx", *weights)
    changed = written(tmp_path / "b.onnx", weights[0], 2 * weights[1])
    found = check(original, changed)
    assert [(c.name, c.scope, c.state) for c in found.constants] == [("w", "else_branch of 'y'", "numbers")]
    assert "new numbers: 'w' in else_branch of 'y'" in found.lines()


@pytest.mark.parametrize("tamper", [other_operator, one_weight_too, all_zero])
@pytest.mark.parametrize("with_record", [True, False])
def test_a_tampered_file_does_not_pass(
    tamper: Callable[[onnx.ModelProto], None], with_record: bool, tmp_path: Path
) -> None:
    original, pruned, record = files(tmp_path)
    proto = onnx.load(pruned)
    tamper(proto)
    onnx.save(proto, pruned)
    with pytest.raises(VerificationError):
        check(original, pruned, record if with_record else None)


def test_zeros_alone_are_checked_too(tmp_path: Path) -> None:
    original, pruned, record = files(tmp_path, structure="weights")
    assert check(original, pruned).removed_vs_masked == 0
    proto = onnx.load(pruned)
    other_operator(proto)
    onnx.save(proto, pruned)
    with pytest.raises(VerificationError, match="differs"):
        check(original, pruned)


def test_a_packed_model_is_checked_by_the_weights_that_it_unpacks_to(tmp_path: Path) -> None:
    result = onnxprune.prune(MLP_FILE, sparsity=0.6, pack="auto", latency=False)
    onnxprune.save(result, tmp_path / "packed.onnx", record=tmp_path / "record.json")
    found = check(MLP_FILE, tmp_path / "packed.onnx", tmp_path / "record.json")
    assert found.zeroed >= 2 and found.changed == 0
    assert found.removed_vs_masked is not None and found.removed_vs_masked < 1e-5


@pytest.mark.parametrize("how", ["NaN", "constant", "empty"])
def test_equal_outputs_that_say_nothing_are_no_proof(how: str, tmp_path: Path) -> None:
    """The end of the graph hides all differences, and so does every value in front of it that has another name."""
    ends = {
        "NaN": "z = Sub(q, q) y = Div(z, z)",
        "constant": "a = Abs(q) s = Neg(a) y = Relu(s)",
        "empty": "y = Slice(q, zero, zero, one)",
    }
    text = f"""<ir_version: 8, opset_import: ["":17]> g (float[n, 8] x) => (float[n, m] y)
        <int64[1] zero = {{0}}, int64[1] one = {{1}}> {{ h = MatMul(x, w) q = Relu(h) {ends[how]} }}"""
    for name in ("a", "b"):
        proto = parser.parse_model(
            text if name == "a" else text.replace("h = MatMul", "k = MatMul").replace("(h)", "(k)")
        )
        proto.graph.initializer.append(numpy_helper.from_array(random(8, 4), "w"))
        onnx.save(proto, tmp_path / f"{name}.onnx")
    found = check(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert not found.proved and found.removed_vs_masked is None and "'y' is" in found.unproved
