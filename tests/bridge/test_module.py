"""`to_torch`, `write_back`, `reexport`: names, roles, modes, what trains, and what is refused."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx_ir as ir
import pytest
import torch

from onnxprune.bridge import (
    compare_with_runtime,
    intermediate_values,
    op,
    reexport,
    supported_operators,
    to_torch,
    write_back,
)
from onnxprune.errors import ModelError

from .models import F16, F32, I64, assert_like_runtime, assert_same, bridge, generator, model, runtime


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return generator(seed).standard_normal(shape).astype(np.float32)


def mlp(names: tuple[str, str, str, str] = ("w1", "b1", "w2", "b2"), dtype: type = np.float32) -> onnx.ModelProto:
    """x (n, 4) -> Gemm -> Relu -> Gemm -> y (n, 3)."""
    nodes = [
        oh.make_node("Gemm", ["x", names[0], names[1]], ["h"], name="first", transB=1),
        oh.make_node("Relu", ["h"], ["r"], name="act"),
        oh.make_node("Gemm", ["r", names[2], names[3]], ["y"], name="second", transB=1),
    ]
    arrays = (rand(5, 4), rand(5, seed=1), rand(3, 5, seed=2), rand(3, seed=3))
    constants = {name: array.astype(dtype) for name, array in zip(names, arrays, strict=True)}
    return model(nodes, {"x": (F16 if dtype is np.float16 else F32, ("n", 4))}, ["y"], constants)


def train(module: torch.nn.Module, *inputs: torch.Tensor, steps: int = 3) -> list[float]:
    """A few steps of SGD towards zero outputs."""
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = module(*inputs).float().square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    return losses


def initializers(proto_or_model: onnx.ModelProto | ir.Model) -> dict[str, np.ndarray]:
    proto = ir.to_proto(proto_or_model) if isinstance(proto_or_model, ir.Model) else proto_or_model
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def test_importing_onnxprune_does_not_import_torch() -> None:
    code = "import sys, onnxprune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_torch_the_bridge_says_what_to_install() -> None:
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "import onnxprune.bridge"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "onnxprune.errors.OnnxPruneError: Retraining needs PyTorch" in run.stderr
    assert "pip install 'onnxprune[retrain]'" in run.stderr


def test_a_model_comes_from_a_path_a_proto_or_onnx_ir(tmp_path: Path) -> None:
    proto = mlp()
    onnx.save(proto, tmp_path / "m.onnx")
    x = rand(2, 4)
    for given in (proto, ir.from_proto(proto), tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        assert_same(bridge(to_torch(given), {"x": x}), runtime(proto, {"x": x}))
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    for bad in ("bad.onnx", "none.onnx"):
        with pytest.raises(ModelError, match=bad):
            to_torch(tmp_path / bad)


def test_names_that_collide_or_are_no_identifiers_keep_their_own_parameter() -> None:
    proto = mlp(("w.1", "w_1", "class", "forward"))
    module = to_torch(proto)
    assert sorted(module.onnx_names.values()) == ["class", "forward", "w.1", "w_1"]
    assert len(dict(module.named_parameters())) == 4
    assert_same(bridge(module, {"x": rand(2, 4)}), runtime(proto, {"x": rand(2, 4)}))
    for name, parameter in module.named_parameters():
        parameter.data.fill_(len(module.onnx_names[name]) + sum(map(ord, module.onnx_names[name])))
    for name, array in initializers(write_back(module, proto)).items():
        assert (array == len(name) + sum(map(ord, name))).all()


def test_arguments_are_named_by_the_graph_inputs_and_outputs_come_in_graph_order() -> None:
    nodes = [oh.make_node("Sub", ["a.left", "b"], ["d"]), oh.make_node("Neg", ["d"], ["e"])]
    module = to_torch(model(nodes, {"a.left": (F32, (2,)), "b": (F32, (2,))}, ["e", "d"]))
    e, d = module(b=torch.ones(2), a_left=torch.zeros(2))
    assert d.tolist() == [-1, -1] and e.tolist() == [1, 1]
    assert module.argument_names == {"a.left": "a_left", "b": "b"}
    assert module.output_names == ["e", "d"]


def test_the_code_reads_like_the_network() -> None:
    code = to_torch(mlp()).code
    assert "def forward(self, x):" in code
    assert "h = ops.gemm(x, w1, b1, transB = 1)" in code
    assert "r = ops.relu(h)" in code


def test_write_back_puts_trained_numbers_into_the_same_graph() -> None:
    proto = mlp()
    proto.metadata_props.add(key="author", value="me")
    module = to_torch(proto)
    losses = train(module, torch.from_numpy(rand(8, 4, seed=9)))
    assert losses[-1] < losses[0]
    written = write_back(module, proto)
    assert_same(runtime(ir.to_proto(written), {"x": rand(2, 4)}), bridge(module, {"x": rand(2, 4)}))
    plain = ir.to_proto(written)
    assert [node.SerializeToString() for node in plain.graph.node] == [
        node.SerializeToString() for node in ir.to_proto(ir.from_proto(proto)).graph.node
    ]
    assert {prop.key: prop.value for prop in plain.metadata_props} == {"author": "me"}
    assert any((initializers(plain)[name] != array).any() for name, array in initializers(proto).items())


def test_without_training_every_initializer_is_bit_identical_nan_and_minus_zero_too() -> None:
    proto = mlp()
    odd = np.array([np.nan, -0.0, 1e-45, np.inf, 5], dtype=np.float32)
    proto.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(odd, "b1"))
    written = ir.to_proto(write_back(to_torch(proto), proto))
    assert written.SerializeToString(deterministic=True) == ir.to_proto(ir.from_proto(proto)).SerializeToString(
        deterministic=True
    )


def test_write_back_refuses_another_model() -> None:
    other = mlp()
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(rand(7, 4), "w1"))
    with pytest.raises(ModelError, match=r"'w1' has shape \(7, 4\)"):
        write_back(to_torch(mlp()), other)
    with pytest.raises(ModelError, match="no initializer 'w1'"):
        write_back(to_torch(mlp()), mlp(("a", "b", "c", "d")))
    with pytest.raises(ModelError, match="reexport"):
        write_back(torch.nn.Linear(2, 2), mlp())


def test_float16_weights_train_in_float32_and_go_back_as_float16() -> None:
    proto = mlp(dtype=np.float16)
    module = to_torch(proto).float()
    train(module, torch.from_numpy(rand(8, 4)))
    written = initializers(write_back(module, proto))
    assert all(array.dtype == np.float16 for array in written.values())
    np.testing.assert_array_equal(written["w1"], module.w1.detach().numpy().astype(np.float16))


def test_a_tied_initializer_is_one_parameter() -> None:
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["h"]),
        oh.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        oh.make_node("MatMul", ["h", "wt"], ["y"]),
    ]
    proto = model(nodes, {"x": (F32, ("n", 3))}, ["y"], {"w": rand(3, 5)})
    module = assert_like_runtime(proto, {"x": rand(2, 3)})
    assert [name for name, _ in module.named_parameters()] == ["w"]
    train(module, torch.ones(2, 3))
    np.testing.assert_array_equal(initializers(write_back(module, proto))["w"], module.w.detach().numpy())


def test_weights_behind_other_operators_and_in_constant_nodes_train() -> None:
    constant = oh.make_node("Constant", [], ["cw"], value=onnx.numpy_helper.from_array(rand(3, 3)))
    nodes = [
        constant,
        oh.make_node("Cast", ["half"], ["w"], to=F32),
        oh.make_node("Mul", ["w", "gain"], ["scaled"]),
        oh.make_node("MatMul", ["x", "scaled"], ["h"]),
        oh.make_node("MatMul", ["h", "cw"], ["y"]),
    ]
    constants = {"half": rand(3, 3).astype(np.float16), "gain": rand(3)}
    proto = model(nodes, {"x": (F32, ("n", 3))}, ["y"], constants)
    module = assert_like_runtime(proto, {"x": rand(2, 3)})
    assert sorted(module.onnx_names[name] for name, _ in module.named_parameters()) == ["cw", "gain", "half"]
    train(module, torch.ones(2, 3))
    assert_same(
        runtime(ir.to_proto(write_back(module, proto)), {"x": rand(2, 3)}), bridge(module, {"x": rand(2, 3)}), 1e-3
    )


def test_what_trains_is_decided_by_the_role() -> None:
    nodes = [
        oh.make_node("Resize", ["x", "", "scales"], ["a"], mode="nearest"),
        oh.make_node("Conv", ["a", "w"], ["b"]),
        oh.make_node("BatchNormalization", ["b", "gamma", "beta", "mean", "var"], ["c"]),
        oh.make_node("Mul", ["c", "part"], ["d"]),
        oh.make_node("Clip", ["d", "low", "high"], ["y"]),
    ]
    constants = {
        "scales": np.array([1, 1, 2, 2], dtype=np.float32), "w": rand(2, 2, 1, 1), "gamma": rand(2), "beta": rand(2),
        "mean": rand(2), "var": np.ones(2, dtype=np.float32), "part": np.float32(0.5), "low": np.float32(-9),
        "high": np.float32(9),
    }  # fmt: skip
    module = to_torch(model(nodes, {"x": (F32, (1, 2, 3, 3))}, ["y"], constants))
    assert {name for name, _ in module.named_parameters()} == {"w", "gamma", "beta"}
    assert {"mean", "var", "part"} <= {name for name, _ in module.named_buffers()}


def test_int8_weights_train_through_dequantization_and_come_back_as_int8() -> None:
    integers = generator().integers(-128, 128, (3, 4)).astype(np.int8)
    nodes = [
        oh.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        oh.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        oh.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0),
        oh.make_node("Gemm", ["xd", "w"], ["y"], transB=1),
    ]
    constants = {
        "xs": np.float32(0.05), "xz": np.uint8(128), "wq": integers,
        "ws": np.array([0.02, 0.01, 0.03], dtype=np.float32), "wz": np.array([0, 3, -2], dtype=np.int8),
    }  # fmt: skip
    proto = model(nodes, {"x": (F32, ("n", 4))}, ["y"], constants)
    module = assert_like_runtime(proto, {"x": rand(2, 4)})
    np.testing.assert_array_equal(initializers(write_back(module, proto))["wq"], integers)
    x = torch.from_numpy(rand(16, 4)).requires_grad_()
    train(module, x, steps=20)
    assert x.grad is not None and float(x.grad.abs().sum()) > 0  # through QuantizeLinear
    written = write_back(module, proto)
    assert initializers(written)["wq"].dtype == np.int8
    assert (initializers(written)["wq"] != integers).any()
    assert_same(runtime(ir.to_proto(written), {"x": rand(2, 4)}), bridge(module, {"x": rand(2, 4)}))


def test_local_functions_are_inlined_and_the_model_keeps_them() -> None:
    function = oh.make_function(
        "local", "Scaled", ["a", "b"], ["c"],
        [oh.make_node("MatMul", ["a", "b"], ["m"]), oh.make_node("Relu", ["m"], ["c"])], [oh.make_opsetid("", 18)],
    )  # fmt: skip
    nodes = [
        oh.make_node("Scaled", ["x", "w"], ["h"], domain="local"),
        oh.make_node("Scaled", ["h", "v"], ["y"], domain="local"),
    ]
    proto = model(nodes, {"x": (F32, ("n", 3))}, ["y"], {"w": rand(3, 3), "v": rand(3, 3, seed=1)})
    proto.functions.append(function)
    proto.opset_import.append(oh.make_opsetid("local", 1))
    module = assert_like_runtime(proto, {"x": rand(2, 3)})
    train(module, torch.ones(2, 3))
    written = ir.to_proto(write_back(module, proto))
    assert [f.name for f in written.functions] == ["Scaled"]
    assert_same(runtime(written, {"x": rand(2, 3)}), bridge(module, {"x": rand(2, 3)}))


def test_a_function_of_another_opset_keeps_its_own_operators() -> None:
    text = """<ir_version: 8, opset_import: ["": 16, "my": 1]> graph (float[n, 3] x) => (y) {
        h = my.inner(x)  t = Softmax<axis = 1>(h)  y = my.outer(t) }
    <domain: "my", opset_import: ["": 12]> inner (a) => (b) { c = Softmax<axis = 0>(a)  b = Squeeze<axes = [0]>(c) }
    <domain: "my", opset_import: ["": 13, "my": 1]> outer (a) => (b) { c = Softmax<axis = 0>(a)  b = Neg(c) }"""
    proto, x = onnx.parser.parse_model(text.replace("float[n, 3]", "float[1, 2, 3]")), rand(1, 2, 3)
    flat = np.exp(x) / np.exp(x).sum()  # Softmax of opset 12 flattens all axes from 0 on
    rows = np.exp(flat[0]) / np.exp(flat[0]).sum(1, keepdims=True)
    ours = bridge(to_torch(proto), {"x": x})  # ONNX Runtime reads all of them as opset 16, and refuses Squeeze
    assert_same(ours, [-np.exp(rows) / np.exp(rows).sum(0)])


@pytest.mark.parametrize("trips", [0, 2])
def test_a_loop_without_steps_gives_empty_rows(trips: int) -> None:
    text = """<ir_version: 8, opset_import: ["": 16]> graph (float[2, 3] x, int64 trips) => (float[2, 3] y, rows) {
        y, rows = Loop(trips, "", x) <body = step (int64 i, bool go, float[2, 3] h)
            => (bool on, float[2, 3] next, float[3] row)
            { on = Identity(go)  next = Tanh(h)  row = ReduceSum<keepdims = 0>(next, first) }> }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    assert_like_runtime(proto, {"x": rand(2, 3), "trips": np.array(trips)})


def test_a_scan_over_nothing_gives_empty_rows() -> None:
    text = """<ir_version: 8, opset_import: ["": 16]> graph (float[3] s, float[2, n] x) => (last, rows) {
        last, rows = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-1],
            body = step (float[3] a, float[2] b) => (float[3] c, float[2, 3] d) { c = Neg(a)  e = Unsqueeze(b, one)
            d = Mul(e, c) }> (s, x) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    module = assert_like_runtime(proto, {"s": rand(3), "x": rand(2, 4)})
    last, rows = bridge(module, {"s": rand(3), "x": rand(2, 0)})  # here ONNX Runtime 1.32 crashes
    np.testing.assert_array_equal(last, rand(3))
    assert rows.shape == (2, 3, 0)


def test_weights_in_loop_and_if_bodies_train_and_come_back() -> None:
    step = oh.make_graph(
        [oh.make_node("MatMul", ["h", "w"], ["m"]), oh.make_node("Tanh", ["m"], ["next"]),
         oh.make_node("Identity", ["go"], ["go_on"]), oh.make_node("Identity", ["next"], ["row"])],
        "step",
        [oh.make_tensor_value_info("i", I64, ()), oh.make_tensor_value_info("go", onnx.TensorProto.BOOL, ()),
         oh.make_tensor_value_info("h", F32, ("n", 3))],
        [onnx.ValueInfoProto(name=name) for name in ("go_on", "next", "row")],
        [onnx.numpy_helper.from_array(rand(3, 3), "w")],
    )  # fmt: skip
    for value, kind in zip(step.output, (onnx.TensorProto.BOOL, F32, F32), strict=True):
        value.type.tensor_type.elem_type = kind
    node = oh.make_node("Loop", ["trips", "", "x"], ["last", "rows"], body=step)
    proto = model([node], {"x": (F32, ("n", 3))}, ["last", "rows"], {"trips": np.array(4)})
    module = assert_like_runtime(proto, {"x": rand(2, 3)})
    last, rows = module(torch.ones(2, 3))
    assert rows.shape == (4, 2, 3)
    last.sum().backward()
    ((name, weight),) = module.named_parameters()
    assert weight.grad is not None and module.onnx_names[name] == "w"
    weight.data += 0.5
    assert_same(runtime(ir.to_proto(write_back(module, proto)), {"x": rand(2, 3)}), bridge(module, {"x": rand(2, 3)}))


def test_an_unknown_operator_names_itself_its_node_and_the_way_round() -> None:
    node = oh.make_node("Mystery", ["x"], ["y"], name="the_node", domain="com.example")
    proto = model([node], {"x": (F32, (2,))}, ["y"])
    proto.opset_import.append(oh.make_opsetid("com.example", 3))
    with pytest.raises(
        ModelError, match="no operator Mystery of com.example opset 3, used by node 'the_node'.*--exclude"
    ):
        to_torch(proto)

    @op("Mystery", domain="com.example")
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    assert to_torch(proto)(torch.ones(2)).tolist() == [2, 2]


def test_an_attribute_the_bridge_does_not_know_is_refused() -> None:
    proto = model([oh.make_node("Relu", ["x"], ["y"], name="odd", twist=3)], {"x": (F32, (2,))}, ["y"])
    with pytest.raises(ModelError, match="'odd'.*twist"):
        to_torch(proto)


def test_copies_compile_and_autocast() -> None:
    module = to_torch(mlp())
    x = torch.from_numpy(rand(8, 4))
    twin = copy.deepcopy(module)
    train(twin, x)
    assert not torch.equal(twin(x), module(x))
    assert list(twin.state_dict()) == list(module.state_dict())
    assert twin.onnx_names == module.onnx_names and not twin.training
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))
    train(compiled, x)
    assert initializers(write_back(compiled, mlp()))
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
    assert module.w1.grad is not None and module.w1.grad.dtype == torch.float32


def test_every_intermediate_value_can_be_seen_and_compared() -> None:
    proto = mlp()
    module = to_torch(proto)
    values = intermediate_values(module, torch.from_numpy(rand(2, 4)))
    assert {"h", "r", "y"} <= set(values)
    found = compare_with_runtime(module, onnx.shape_inference.infer_shapes(proto), {"x": rand(2, 4)}, every_value=True)
    assert {mismatch.value for mismatch in found} == {"h", "r", "y"}
    assert max(mismatch.error for mismatch in found) < 1e-5
    module.b1.data += 1
    worst = [m.value for m in compare_with_runtime(module, proto, {"x": rand(2, 4)}) if m.error > 1e-3]
    assert worst == ["y"]


def test_a_failing_node_is_named() -> None:
    module = to_torch(mlp())
    with pytest.raises(ModelError, match=r"'first' \(Gemm\)"):
        intermediate_values(module, torch.ones(2, 7))


def test_reexport_writes_a_module_that_was_changed_by_hand(tmp_path: Path) -> None:
    module = to_torch(mlp())
    for node in module.graph.nodes:  # Relu becomes Tanh
        if node.meta.get("onnx_operator") == "Relu":
            node.target = torch.tanh
    module.recompile()
    reexport(module, tmp_path / "new.onnx", [torch.ones(2, 4)])
    written = onnx.load(tmp_path / "new.onnx")
    assert [value.name for value in written.graph.input] == ["x"]
    assert_same(runtime(written, {"x": rand(5, 4)}), bridge(module, {"x": rand(5, 4)}))
    with pytest.raises(ModelError, match="could not export"):
        reexport(module, tmp_path / "bad.onnx", [torch.ones(2, 9)])


def test_every_current_operator_on_tensors_is_supported() -> None:
    text = {"ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"}
    other = {"Optional", "OptionalGetElement", "OptionalHasElement", "SequenceMap", "If", "Loop", "Scan", "Constant"}
    names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated}
    known = set(supported_operators()) | {"Shape", "Size"}
    assert names - known - text - other == set()
