"""What breaks other converters: each against ONNX Runtime with optimisations off."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch

from onnxprune.bridge import to_torch

from .models import BOOL, F16, F32, I64, assert_like_runtime, assert_same, bridge, generator, model, runtime


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return generator(seed).standard_normal(shape).astype(np.float32)


def ints(*numbers: Any) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def one(
    operator: str,
    x: np.ndarray,
    *inputs: np.ndarray | None,
    opset: int = 18,
    outputs: int = 1,
    rtol: float = 1e-5,
    domain: str = "",
    **attributes: Any,
) -> Any:
    """Compare one node whose first input is fed and whose other inputs are initializers."""
    names = ["x"] + [f"c{i}" if value is not None else "" for i, value in enumerate(inputs)]
    results = [f"y{i}" for i in range(outputs)]
    node = oh.make_node(operator, names, results, domain=domain, **attributes)
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    constants = {f"c{i}": value for i, value in enumerate(inputs) if value is not None}
    proto = model([node], {"x": (kind, x.shape)}, results, constants, opset, microsoft=bool(domain))
    return assert_like_runtime(proto, {"x": x}, rtol)


COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("sizes", [(2, 3, 10, 7), (2, 3, 3, 4), (2, 3, 12, 10)])
def test_resize_interpolates_in_every_coordinate_mode(coordinates: str, mode: str, sizes: tuple[int, ...]) -> None:
    one(
        "Resize",
        rand(2, 3, 6, 5),
        None,
        None,
        ints(*sizes),
        mode=mode,
        coordinate_transformation_mode=coordinates,
        opset=19,
    )


@pytest.mark.parametrize("coordinates", [*COORDINATES, "tf_half_pixel_for_nn"])
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 0.6, 1.7), (1, 1, 3, 0.5)])
def test_resize_picks_the_nearest_in_every_rounding(coordinates: str, rounding: str, scales: tuple[float, ...]) -> None:
    factors = np.array(scales, dtype=np.float32)
    attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding, "mode": "nearest"}
    one("Resize", rand(2, 3, 6, 5), None, factors, opset=19 if "symmetric" in coordinates else 13, **attributes)


def test_resize_of_opset_10_is_asymmetric_and_upsample_too() -> None:
    scales = np.array([1, 1, 2, 3], dtype=np.float32)
    for mode in ("nearest", "linear"):
        one("Resize", rand(1, 2, 4, 5), scales, mode=mode, opset=10)
        one("Upsample", rand(1, 2, 4, 5), scales, mode=mode, opset=9)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_antialias_exclude_outside_axes_and_policy(mode: str) -> None:
    one("Resize", rand(1, 2, 9, 8), None, None, ints(1, 2, 4, 5), mode=mode, antialias=1, opset=18, rtol=1e-4)
    one("Resize", rand(1, 2, 9, 8), None, None, ints(5, 4), mode=mode, axes=[3, 2], opset=18)
    one(
        "Resize", rand(1, 2, 9, 8), None, None, ints(6, 4), mode=mode, axes=[2, 3],
        keep_aspect_ratio_policy="not_larger", opset=18,
    )  # fmt: skip
    if mode == "cubic":
        one(
            "Resize",
            rand(1, 2, 4, 4),
            None,
            None,
            ints(1, 2, 7, 9),
            mode="cubic",
            exclude_outside=1,
            cubic_coeff_a=-0.5,
        )


def test_resize_crop_extrapolates() -> None:
    roi = np.array([0, 0, -0.2, 0.1, 1, 1, 0.9, 1.3], dtype=np.float32)
    for mode in ("nearest", "linear"):
        one(
            "Resize", rand(1, 1, 6, 5), roi, None, ints(1, 1, 4, 7), mode=mode,
            coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=10.0, opset=13,
        )  # fmt: skip


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [7, 8])
def test_auto_pad_puts_the_odd_pixel_where_it_belongs(auto_pad: str, size: int) -> None:
    x = rand(1, 2, size, size + 1)
    one("Conv", x, rand(3, 2, 4, 3, seed=1), rand(3, seed=2), auto_pad=auto_pad, strides=[2, 3])
    one("MaxPool", x, kernel_shape=[4, 3], auto_pad=auto_pad, strides=[2, 2])
    one("AveragePool", x, kernel_shape=[4, 3], auto_pad=auto_pad, strides=[2, 2])
    if auto_pad != "VALID":
        one("ConvTranspose", x, rand(2, 3, 4, 3, seed=1), auto_pad=auto_pad, strides=[2, 2])


def test_convolutions_pad_unevenly_and_transposed_ones_take_an_output_shape() -> None:
    one("Conv", rand(1, 4, 7, 6), rand(6, 2, 3, 3, seed=1), pads=[0, 2, 1, 0], group=2, dilations=[2, 1])
    w = rand(2, 3, 3, 3, seed=1)
    one("ConvTranspose", rand(1, 2, 4, 5), w, pads=[1, 0, 2, 1], strides=[2, 3], output_padding=[1, 2])
    one("ConvTranspose", rand(1, 2, 4, 5), w, rand(3), output_shape=[9, 16], strides=[2, 3])


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("ceil", [0, 1])
def test_average_pool_counts_what_it_should(include: int, ceil: int) -> None:
    for pads in ([1, 1, 1, 1], [0, 1, 1, 0]):
        attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": pads}
        one("AveragePool", rand(1, 2, 8, 9), count_include_pad=include, ceil_mode=ceil, opset=19, **attributes)
        one("MaxPool", rand(1, 2, 8, 9), ceil_mode=ceil, outputs=2, opset=12, **attributes)


def test_clip_lives_without_either_bound() -> None:
    low, high = np.float32(-0.3), np.float32(0.4)
    one("Clip", rand(4, 5), None, high)
    one("Clip", rand(4, 5), low)
    one("Clip", rand(4, 5), low, high)
    one("Clip", rand(4, 5))
    one("Clip", rand(4, 5), opset=6, min=-0.2)


def test_negative_indices_and_steps() -> None:
    one("Gather", rand(4, 5), ints(-1, 0, -4), axis=0)
    one("Gather", rand(4, 5), np.array(-2), axis=1)
    one("GatherElements", rand(3, 4), ints([-1, 0, 1, -2]), axis=0)
    one("ScatterElements", rand(3, 4), ints([-1, 0, 1, -2]), rand(1, 4), axis=0)
    one("Slice", rand(6, 7), ints(-1, 5), ints(-100, 0), ints(0, 1), ints(-2, -1))
    one("Slice", rand(6, 7), ints(1), ints(2**62), ints(-1), ints(3))
    one("Slice", rand(6, 7), opset=9, starts=[-3], ends=[2**31], axes=[1])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad_in_every_mode_with_and_without_axes(mode: str) -> None:
    one("Pad", rand(1, 2, 4, 5), ints(0, 0, 2, 3, 0, 0, 1, 2), None, mode=mode, opset=19)
    one("Pad", rand(1, 2, 4, 5), ints(3, 1, 2, 0), None, ints(-1, 2), mode=mode, opset=19)
    if mode == "constant":
        one("Pad", rand(1, 2, 4, 5), ints(0, 0, -1, 2, 0, 0, 1, -2), np.float32(3.5), opset=13)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("special", ["plain", "lengths", "initial", "clip", "activations", "peepholes", "input_forget"])
def test_lstm(direction: str, special: str) -> None:
    d, h, i, n, t = 2 if direction == "bidirectional" else 1, 5, 4, 3, 6
    constants: list[np.ndarray | None] = [rand(d, 4 * h, i, seed=1), rand(d, 4 * h, h, seed=2), rand(d, 8 * h, seed=3)]
    constants.append(np.array([6, 2, 4], dtype=np.int32) if special == "lengths" else None)
    constants += [rand(d, n, h, seed=4), rand(d, n, h, seed=5)] if special == "initial" else [None, None]
    constants.append(rand(d, 3 * h, seed=6) if special == "peepholes" else None)
    attributes: dict[str, Any] = {"clip": {"clip": 0.5}, "input_forget": {"input_forget": 1}}.get(special, {})
    if special == "activations":
        attributes = {"activations": ["HardSigmoid", "Relu", "Softsign"] * d, "activation_alpha": [0.3] * d}
        attributes["activation_beta"] = [0.4] * d
    while constants and constants[-1] is None:
        constants.pop()
    one("LSTM", rand(t, n, i), *constants, outputs=3, hidden_size=h, direction=direction, opset=14, **attributes)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("linear_before_reset", [0, 1])
@pytest.mark.parametrize("lengths", [False, True])
def test_gru(direction: str, linear_before_reset: int, lengths: bool) -> None:
    d, h, i, n, t = 2 if direction == "bidirectional" else 1, 5, 4, 3, 6
    constants = [rand(d, 3 * h, i, seed=1), rand(d, 3 * h, h, seed=2), rand(d, 6 * h, seed=3)]
    extra = [np.array([6, 1, 4], dtype=np.int32), rand(d, n, h, seed=5)] if lengths else []
    attributes = {"hidden_size": h, "direction": direction, "linear_before_reset": linear_before_reset}
    one("GRU", rand(t, n, i), *constants, *extra, outputs=2, opset=14, **attributes)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_rnn(direction: str) -> None:
    d = 2 if direction == "bidirectional" else 1
    weights = [rand(d, 5, 4, seed=1), rand(d, 5, 5, seed=2), rand(d, 10, seed=3)]
    one("RNN", rand(6, 3, 4), *weights, outputs=2, hidden_size=5, direction=direction, opset=14)
    one(
        "RNN",
        rand(6, 3, 4),
        *weights,
        outputs=2,
        hidden_size=5,
        direction=direction,
        opset=14,
        activations=["Relu"] * d,
    )


def test_reshape_copies_infers_and_keeps_zeros() -> None:
    one("Reshape", rand(2, 3, 4), ints(0, -1))
    one("Reshape", rand(2, 3, 4), ints(4, 0, 2))
    empty = np.zeros((0, 3), dtype=np.float32)
    one("Reshape", empty, ints(3, 0), allowzero=1)


def test_cast_cuts_towards_zero_and_keeps_bits() -> None:
    x = np.array([-2.7, -0.5, 0.5, 1.5, 2.5, 250.9], dtype=np.float32)
    for kind in (onnx.TensorProto.INT32, onnx.TensorProto.INT64, BOOL, F16, onnx.TensorProto.DOUBLE):
        one("Cast", x, to=kind)
    one("Cast", np.array([300, -1, 127], dtype=np.int64), to=onnx.TensorProto.INT8)
    one("Round", x)


def test_integer_division_and_both_remainders() -> None:
    a, b = np.array([-7, -7, 7, 7, 6], dtype=np.int64), np.array([2, -2, 2, -2, 3], dtype=np.int64)
    one("Div", a, b)
    one("Mod", a, b)
    one("Mod", a, b, fmod=1)
    one("Mod", a.astype(np.float32) / 3, b.astype(np.float32), fmod=1)


def test_float16_sums_are_made_in_float32() -> None:
    x = np.full((1, 4096), 0.1, dtype=np.float16)
    exact = x.astype(np.float32).sum()
    for node in (oh.make_node("ReduceSum", ["x"], ["y"], keepdims=1), oh.make_node("MatMul", ["x", "w"], ["y"])):
        constants = {"w": np.ones((4096, 1), dtype=np.float16)} if node.op_type == "MatMul" else {}
        (y,) = bridge(to_torch(model([node], {"x": (F16, x.shape)}, ["y"], constants)), {"x": x})
        assert y.dtype == np.float16
        assert abs(float(y.item()) - exact) < 0.3  # sums in float16 stop growing at 256


@pytest.mark.parametrize(
    "equation", ["ij,jk->ik", "bij,bkj->bik", "ij->ji", "ii->i", "...ij,...jk", "ij,j", "bhqd,bhkd->bhqk"]
)
def test_einsum(equation: str) -> None:
    shapes = {"i": 3, "j": 4, "k": 5, "b": 2, "h": 2, "q": 3, "d": 4}
    terms = equation.split("->")[0].split(",")
    arrays = [rand(*(shapes[c] for c in term.replace("...", "b")), seed=i) for i, term in enumerate(terms)]
    if equation == "ii->i":
        arrays = [rand(3, 3)]
    one("Einsum", arrays[0], *arrays[1:], equation=equation)


def test_softmax_before_13_flattens() -> None:
    for operator in ("Softmax", "LogSoftmax", "Hardmax"):
        one(operator, rand(2, 3, 4), axis=1, opset=11)
        one(operator, rand(2, 3, 4), axis=1, opset=13)


def test_instance_normalization_cumsum_lrn_and_groups() -> None:
    one("InstanceNormalization", rand(2, 3, 5, 4), rand(3, seed=1), rand(3, seed=2))
    for exclusive in (0, 1):
        for reverse in (0, 1):
            one("CumSum", rand(3, 4), np.array(1), exclusive=exclusive, reverse=reverse)
    one("LRN", rand(1, 7, 3, 3), size=5, alpha=0.1, beta=0.7, bias=1.5)
    one("GroupNormalization", rand(2, 6, 4), rand(6, seed=1), rand(6, seed=2), num_groups=3, opset=21)


def test_split_outputs_keep_their_order() -> None:
    one("Split", rand(7, 2), ints(1, 4, 2), outputs=3, axis=0)
    one("Split", rand(7, 2), outputs=3, num_outputs=3, axis=0, opset=18)
    one("Split", rand(6, 2), outputs=3, axis=0, opset=11)


def test_batch_normalization_trains_like_pytorch() -> None:
    scale, bias, mean, var = rand(3, seed=1), rand(3, seed=2), rand(3, seed=3), np.abs(rand(3, seed=4)) + 0.5
    node = oh.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], momentum=0.8, epsilon=1e-3)
    constants = {"s": scale, "b": bias, "m": mean, "v": var}
    module = to_torch(model([node], {"x": (F32, ("n", 3, 5, 5))}, ["y"], constants, opset=15))
    native = torch.nn.BatchNorm2d(3, eps=1e-3, momentum=0.2)
    state = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
    native.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=False)
    x = torch.randn(8, 3, 5, 5)
    for mode in (True, False):
        module.train(mode), native.train(mode)
        torch.testing.assert_close(module(x), native(x))
    torch.testing.assert_close(module.m, native.running_mean)
    torch.testing.assert_close(module.v, native.running_var)
    module.freeze_statistics().train()
    before = module.m.clone()
    torch.testing.assert_close(module(x), native(x))  # native is in eval mode
    torch.testing.assert_close(module.m, before)


def test_dropout_follows_the_module_mode() -> None:
    node = oh.make_node("Dropout", ["x", "r"], ["y", "mask"])
    module = to_torch(model([node], {"x": (F32, ("n",))}, ["y", "mask"], {"r": np.float32(0.25)}, opset=13))
    x = torch.ones(20000)
    y, mask = module(x)
    assert torch.equal(y, x) and mask.all()
    y, mask = module.train()(x)
    assert abs(float(mask.float().mean()) - 0.75) < 0.02
    torch.testing.assert_close(y, mask / 0.75)


def test_random_operators_draw_from_their_distribution() -> None:
    node = oh.make_node("Bernoulli", ["x"], ["y"], seed=3.0)
    module = to_torch(model([node], {"x": (F32, ("n",))}, ["y"], opset=15))
    x = torch.full((20000,), 0.3)
    assert abs(float(module(x).mean()) - 0.3) < 0.02
    assert torch.equal(module(x), module(x))  # a seed gives the same numbers every time
    node = oh.make_node("RandomNormalLike", ["x"], ["y"], mean=2.0, scale=3.0)
    y = to_torch(model([node], {"x": (F32, ("n",))}, ["y"]))(x)
    assert abs(float(y.mean()) - 2) < 0.1 and abs(float(y.std()) - 3) < 0.1


def test_shapes_computed_in_the_graph_stay_python_ints_and_take_any_size() -> None:
    nodes = [
        oh.make_node("Shape", ["x"], ["s"]),
        oh.make_node("Gather", ["s", "zero"], ["n"]),
        oh.make_node("Gather", ["s", "last"], ["c"]),
        oh.make_node("Div", ["c", "two"], ["half"]),
        oh.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        oh.make_node("Unsqueeze", ["half", "axis"], ["h1"]),
        oh.make_node("Concat", ["n1", "minus", "h1"], ["target"], axis=0),
        oh.make_node("Reshape", ["x", "target"], ["y"]),
        oh.make_node("Cast", ["half"], ["hf"], to=F32),
        oh.make_node("Mul", ["y", "hf"], ["z"]),
    ]
    constants = {"zero": np.array(0), "last": np.array(-1), "two": np.array(2), "axis": ints(0), "minus": ints(-1)}
    proto = model(nodes, {"x": (F32, ("n", "t", "c"))}, ["z"], constants)
    module = to_torch(proto)
    for shape in ((2, 3, 4), (5, 1, 6)):
        assert_same(bridge(module, {"x": rand(*shape)}), runtime(proto, {"x": rand(*shape)}))
    assert "ops.read" not in module.code
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=True)
    assert compiled(torch.ones(2, 3, 4)).shape == (2, 6, 2)


def test_floats_in_shape_chains_round_as_float32() -> None:
    nodes = [
        oh.make_node("Shape", ["x"], ["s"]),
        oh.make_node("Cast", ["s"], ["f"], to=F32),
        oh.make_node("Mul", ["f", "k"], ["m"]),
        oh.make_node("Floor", ["m"], ["r"]),
        oh.make_node("Cast", ["r"], ["i"], to=I64),
        oh.make_node("ConstantOfShape", ["i"], ["y"]),
    ]
    proto = model(nodes, {"x": (F32, ("n",))}, ["y"], {"k": np.array([0.7], dtype=np.float32)})
    for n in (10, 20, 30, 7):  # 10 * 0.7f is 7 in float32 and 6.9999998 in double
        x = np.zeros(n, dtype=np.float32)
        assert bridge(to_torch(proto), {"x": x})[0].shape == runtime(proto, {"x": x})[0].shape


@pytest.mark.parametrize("opset", range(7, 24))
def test_every_opset_runs_its_own_form_of_the_common_operators(opset: int) -> None:
    """Axes, bounds, sizes as attributes before, as inputs after."""
    nodes = [oh.make_node("Conv", ["x", "w", "b"], ["a"], pads=[1, 1, 1, 1]), oh.make_node("Relu", ["a"], ["r"])]
    constants: dict[str, np.ndarray] = {
        "w": rand(4, 3, 3, 3, seed=1),
        "b": rand(4, seed=2),
        "ax": ints(2, 3),
        "one": ints(1),
    }
    nodes.append(oh.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]))
    mean = {"axes": [2, 3], "keepdims": 1} if opset < 18 else {"keepdims": 1}
    nodes.append(oh.make_node("ReduceMean", ["p"] if opset < 18 else ["p", "ax"], ["m"], **mean))
    if opset < 13:
        nodes.append(oh.make_node("Squeeze", ["m"], ["q"], axes=[2, 3]))
        nodes.append(oh.make_node("Unsqueeze", ["q"], ["u"], axes=[1]))
    else:
        nodes += [oh.make_node("Squeeze", ["m", "ax"], ["q"]), oh.make_node("Unsqueeze", ["q", "one"], ["u"])]
    nodes += [oh.make_node("Flatten", ["u"], ["f"]), oh.make_node("Softmax", ["f"], ["y"])]
    assert_like_runtime(model(nodes, {"x": (F32, ("n", 3, 6, 6))}, ["y"], constants, opset), {"x": rand(2, 3, 6, 6)})


AXIS = np.array(-1)
X34 = rand(3, 4)
SCALARS = [
    ("Unsqueeze", X34, [AXIS], {}),
    ("ReduceSum", X34, [ints(-1)], {}),
    ("CumSum", X34, [AXIS], {}),
]


@pytest.mark.parametrize(("operator", "x", "inputs", "attributes"), SCALARS, ids=[case[0] for case in SCALARS])
def test_one_axis_may_be_a_single_number(
    operator: str, x: np.ndarray, inputs: list[np.ndarray], attributes: dict[str, Any]
) -> None:
    one(operator, x, *inputs, **attributes)


def test_one_axis_of_a_size_may_be_a_single_number() -> None:
    """Function bodies of dynamo exports compute shapes so: they are followed as Python numbers."""
    nodes = [
        oh.make_node("Shape", ["x"], ["s"]),
        oh.make_node("Gather", ["s", "first"], ["n"]),
        oh.make_node("Unsqueeze", ["n", "axis"], ["m"]),
        oh.make_node("Concat", ["m", "last"], ["shape"], axis=0),
        oh.make_node("Reshape", ["x", "shape"], ["y0"]),
    ]
    constants = {"first": np.array(0), "axis": np.array(0), "last": ints(-1)}
    proto = model(nodes, {"x": (F32, ("N", 2, 3))}, ["y0"], constants, 18)
    assert_like_runtime(proto, {"x": rand(4, 2, 3)})
