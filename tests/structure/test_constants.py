"""Constant channels: what is said to be constant is measured, and folding it leaves the outputs as they were.

The measure knows nothing of operators: every value of a model becomes an output, the model runs on two random inputs,
and a channel is constant where all its elements are equal in both runs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from small_models import array, graph, random, set_array

from onnxprune import runtime
from onnxprune.passes import Normalise, RemoveDeadUnits, Tidy
from onnxprune.structure.analysis import analyse
from onnxprune.structure.constant_folding import fold_constants
from onnxprune.structure.constants import Line, constant_channels

Arrays = dict[str, npt.NDArray[np.generic]]

# Units 0 to 3 of h have no incoming weights: their biases are negative, zero, small and large.
BIAS = np.array([-1.5, 0.0, 0.4, 2.0, 0.3, -0.7, 1.1, 0.2], np.float32)
DEAD = 4


def first_layer(kernel: int = 0) -> Arrays:
    """The weights of a layer of eight units, four of which are constant."""
    w = random(8, 3, kernel, kernel) if kernel else random(8, 3)
    w[:DEAD] = 0
    return {"w": w, "b": BIAS.copy()}


def dense(middle: str, opset: int = 20, **weights: npt.NDArray[np.generic]) -> ir.Model:
    """x -> h -> what the text makes of it, called m, -> y."""
    text = f"agraph (float[N,3] x) => (float[N,4] y) {{ h = Gemm <transB = 1> (x, w, b) {middle} y = MatMul(m, v) }}"
    return graph(text, {**first_layer(), "v": random(8, 4), **weights}, opset=opset)


def image(middle: str, opset: int = 20, inputs: int = 8, **weights: npt.NDArray[np.generic]) -> ir.Model:
    """An image x [N, 3, 6, 6] -> h -> m -> y."""
    text = f"agraph (float[N,3,6,6] x) => (float[N,C,H,W] y) {{ h = Conv(x, w, b) {middle} y = Conv(m, v) }}"
    return graph(text, {**first_layer(1), "v": random(4, inputs, 1, 1), **weights}, opset=opset)


def measured(model: ir.Model) -> dict[str, tuple[npt.NDArray[np.generic], ...]]:
    """Return every value that a node makes, for two inputs."""
    model = model.clone()
    for node in model.graph:
        for out in node.outputs:
            if out.name and not out.is_graph_output():
                out.type = out.type or ir.TensorType(ir.DataType.FLOAT)
                model.graph.outputs.append(out)
    session = runtime.make_session(model, optimize="off")
    runs = [runtime.run(session, feeds) for feeds in runtime.working_inputs(model, count=2, session=session)]
    return {name: tuple(run[name] for run in runs) for name in runs[0]}


def constant_numbers(runs: tuple[npt.NDArray[np.generic], ...], axis: int) -> npt.NDArray[np.float64]:
    """Return the number of each index of an axis that holds one number alone, NaN for the others."""
    rows = np.concatenate([np.moveaxis(r.astype(np.float64), axis, 0).reshape(r.shape[axis], -1) for r in runs], axis=1)
    same = np.ptp(rows, axis=1) <= 1e-6 * np.abs(rows).max(axis=1)
    return np.where(same, rows[:, 0], np.nan)


def lines_of(model: ir.Model) -> dict[str, Line]:
    """Return what is said of a model, checked against what is measured."""
    model = model.clone()
    Normalise()(model)
    lines = {str(value.name): line for value, line in constant_channels(analyse(model)).items()}
    runs = measured(model)
    for name, line in lines.items():
        expected = constant_numbers(runs[name], line.axis)
        said = np.isfinite(line.numbers)
        np.testing.assert_allclose(line.numbers[said], expected[said], rtol=1e-4, atol=1e-6, err_msg=name)
    return lines


UNARY = [
    "Relu(h)", "Sigmoid(h)", "Tanh(h)", "LeakyRelu <alpha = 0.3> (h)", "Elu <alpha = 0.5> (h)", "Selu(h)",
    "HardSigmoid <alpha = 0.3> (h)", "HardSwish(h)", "Softplus(h)", "Softsign(h)", "Erf(h)", "Abs(h)", "Neg(h)",
    "Exp(h)", "Clip(h, low, high)", "Celu <alpha = 0.5> (h)", "Mish(h)", "Gelu(h)", "Identity(h)", "Dropout(h)",
    "ThresholdedRelu <alpha = 0.3> (h)",
]  # fmt: skip
BINARY = [
    "Add(h, row)", "Add(row, h)", "Sub(h, row)", "Sub(row, h)", "Mul(h, row)", "Div(h, row)", "Div(row, h)",
    "Max(h, row)", "Min(h, row)", "PRelu(h, row)", "Sum(h, row, h)", "Add(h, one)", "Mul(h, one)", "Sub(one, h)",
    "Add(h, h)", "Mul(h, h)", "Max(h, row, one)", "Mul(h, wide)", "PRelu(h, one)",
]  # fmt: skip
ROW = {
    "row": np.array([0.5, -2, 3, 1, 0.7, 2, -1, 0.1], np.float32), "one": np.array(0.25, np.float32),
    "low": np.array(-0.5, np.float32), "high": np.array(1.0, np.float32),
    "wide": np.array([[0.5, -2, 3, 1, 0.7, 2, -1, 0.1]], np.float32),
}  # fmt: skip


@pytest.mark.parametrize("step", [*UNARY, *BINARY])
def test_a_constant_passes_through_an_operator_of_single_elements(step: str) -> None:
    model = dense(f"m = {step}", **ROW)
    lines = lines_of(model)
    zero_divisor = {1} if step == "Div(row, h)" else set()
    assert lines["m"].axis == 1
    assert set(np.flatnonzero(np.isfinite(lines["m"].numbers))) >= set(range(DEAD)) - zero_divisor


def test_an_attribute_of_a_unary_operator_counts() -> None:
    numbers = lines_of(dense("m = LeakyRelu <alpha = 0.3> (h)"))["m"].numbers
    np.testing.assert_allclose(numbers[:DEAD], [-0.45, 0.0, 0.4, 2.0], rtol=1e-6)


def test_zero_times_anything_is_zero() -> None:
    """The gate is not constant; units 1 of h and of nothing else are zero for every input."""
    numbers = lines_of(dense("g = MatMul(x, u) s = Sigmoid(g) m = Mul(s, h)", u=random(3, 8, seed=5)))["m"].numbers
    assert np.flatnonzero(np.isfinite(numbers)).tolist() == [1] and numbers[1] == 0


def test_a_constant_and_what_is_not_constant_make_no_constant() -> None:
    for step in ("Add(h, g)", "Sub(g, h)", "Max(h, g)", "Div(h, g)"):
        lines = lines_of(dense(f"g = MatMul(x, u) m = {step}", u=random(3, 8, seed=5)))
        assert "m" not in lines


def test_two_layers_of_constants_meet() -> None:
    second = random(8, 3, seed=7)
    second[1:3] = 0
    lines = lines_of(dense("g = Gemm <transB = 1> (x, u, row) m = Mul(h, g)", u=second, **ROW))
    assert np.flatnonzero(np.isfinite(lines["m"].numbers)).tolist() == [1, 2]


def test_constants_follow_moves() -> None:
    lines = lines_of(
        image(
            "j = Concat <axis = 1> (h, x) t = Transpose <perm = [0, 2, 3, 1]> (j)"
            "m = Transpose <perm = [0, 3, 1, 2]> (t) p = MaxPool <kernel_shape = [2, 2]> (h)"
            "q = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (h) g = GlobalAveragePool(h)"
            "k = GlobalMaxPool(h) f = Flatten(h) e = Flatten(g) r = Reshape(h, flat)",
            inputs=11,
            flat=np.array([0, -1]),
        )
    )
    assert {name: line.axis for name, line in lines.items() if name != "y"} == {
        "h": 1, "j": 1, "t": 3, "m": 1, "p": 1, "q": 1, "g": 1, "k": 1, "f": 1, "e": 1, "r": 1,
    }  # fmt: skip
    for name, line in lines.items():
        known = np.flatnonzero(np.isfinite(line.numbers)).tolist()
        assert known == (list(range(4 * 36)) if name in "fr" else [] if name == "y" else list(range(DEAD)))


def test_constants_are_joined_along_their_axis() -> None:
    turn, back = "t = Transpose <perm = [0, 2, 3, 1]> (h)", "m = Transpose <perm = [0, 3, 1, 2]> (j)"
    lines = lines_of(image(f"{turn} j = Concat <axis = 3> (t, t) {back}", inputs=16))
    assert lines["j"].axis == 3
    assert np.flatnonzero(np.isfinite(lines["j"].numbers)).tolist() == [*range(DEAD), *range(8, 8 + DEAD)]


def test_constants_pass_through_a_fused_activation_with_its_settings() -> None:
    text = """agraph (float[N,3] x) => (float[N,4] y) {
      h = com.microsoft.FusedGemm <transB = 1, activation = "LeakyRelu", activation_alpha = 0.3> (x, w, b)
      y = MatMul(h, v) }"""
    weights = {**first_layer(), "v": random(8, 4)}
    numbers = lines_of(graph(text, weights, opset=20, domains=', "com.microsoft" : 1'))["h"].numbers
    np.testing.assert_allclose(numbers[:DEAD], [-0.45, 0.0, 0.4, 2.0], rtol=1e-5, atol=1e-6)
    assert np.isnan(numbers[DEAD:]).all()


@pytest.mark.parametrize(
    ("step", "axis"),
    [
        ("ReduceMean <keepdims = 0> (h, sides)", 1),
        ("ReduceMax <keepdims = 1> (h, sides)", 1),
        ("ReduceMin <keepdims = 0> (h, batch)", 0),
        ("ReduceMean <keepdims = 0> (h, last)", 1),
        ("ReduceMean <keepdims = 1> (h, batch)", 1),
        ("ReduceMean (h, batch)", 1),
        ("ReduceMean <keepdims = 0> (h, channels)", None),
        ("ReduceMean (h)", None),
        ("ReduceSum <keepdims = 0> (h, sides)", None),
    ],
)
def test_constants_outlive_a_mean_over_other_axes(step: str, axis: int | None) -> None:
    sides = {"sides": np.array([2, 3]), "batch": np.array([0]), "last": np.array([-1]), "channels": np.array([1, 2])}
    lines = lines_of(image(f"m = Identity(h) r = {step}", **sides))
    assert ("r" in lines) == (axis is not None)
    if axis is not None:
        assert lines["r"].axis == axis and np.isfinite(lines["r"].numbers).sum() == DEAD


def test_axes_of_a_mean_may_be_an_attribute() -> None:
    assert lines_of(image("m = Identity(h) r = ReduceMean <axes = [2, 3]> (h)", opset=17))["r"].axis == 1
    assert "r" not in lines_of(image("m = Identity(h) r = ReduceMean <axes = [1]> (h)", opset=17))


def test_a_pool_that_counts_its_padding_makes_no_constant() -> None:
    pool = "AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (h)"
    assert "m" not in lines_of(image(f"m = {pool}"))
    assert "m" in lines_of(image(f"m = {pool.replace('pads = [1, 1, 1, 1], ', '')}"))
    assert "m" in lines_of(image(f"m = {pool.replace('count_include_pad = 1', 'count_include_pad = 0')}"))


@pytest.mark.parametrize("pads", ["[0, 0, 0, 0]", "[1, 1, 1, 1]", "[0, 0, 0, 1]"])
def test_constants_in_make_constants_out_of_a_convolution(pads: str) -> None:
    """Filter 0 reads constants alone; 1 reads the one that is zero alone, so that padding changes nothing; 2 none."""
    u = random(5, 8, 3, 3, seed=2)
    u[0, DEAD:] = 0
    u[1, [0, *range(2, 8)]] = 0
    u[2] = 0
    bias = random(5, seed=3)
    lines = lines_of(image(f"m = Conv <pads = {pads}> (h, u, c)", inputs=5, u=u, c=bias))
    padded = pads != "[0, 0, 0, 0]"
    assert np.flatnonzero(np.isfinite(lines["m"].numbers)).tolist() == ([1, 2] if padded else [0, 1, 2])
    without = lines_of(image(f"m = Conv <pads = {pads}> (h, u)", inputs=5, u=u))["m"].numbers
    np.testing.assert_allclose(without, lines["m"].numbers - bias, atol=1e-5)


def test_padding_to_the_same_size_is_padding() -> None:
    u = random(5, 8, 3, 3, seed=2)
    u[0, DEAD:] = 0
    for mode, known in (("SAME_UPPER", []), ("VALID", [0])):
        lines = lines_of(image(f'm = Conv <auto_pad = "{mode}"> (h, u)', inputs=5, u=u))
        assert np.flatnonzero(np.isfinite(lines["m"].numbers)).tolist() == known if known else "m" not in lines


def test_a_grouped_convolution_reads_the_constants_of_its_group() -> None:
    u = random(6, 4, 1, 1, seed=2)  # three filters read units 0 to 3, all constant, three the others
    lines = lines_of(image("m = Conv <group = 2> (h, u, c)", inputs=6, u=u, c=random(6, seed=3)))
    assert np.flatnonzero(np.isfinite(lines["m"].numbers)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "form", ["", "alpha = 0.5", "beta = 0.25", "transB = 1", "alpha = 2.0, beta = 3.0, transB = 1"]
)
def test_constants_in_make_constants_out_of_a_gemm(form: str) -> None:
    u = random(8, 8, seed=2)
    u[DEAD:, :2] = 0
    u = np.ascontiguousarray(u.T) if "transB" in form else u
    for operands in ("(h, u, c)", "(h, u)"):
        numbers = lines_of(dense(f"m = Gemm <{form}> {operands}".replace("<> ", ""), u=u, c=random(8, seed=3)))[
            "m"
        ].numbers
        assert np.flatnonzero(np.isfinite(numbers)).tolist() == [0, 1]
    numbers = lines_of(dense("m = MatMul(h, u)", u=u if "transB" not in form else u.T.copy()))["m"].numbers
    assert np.flatnonzero(np.isfinite(numbers)).tolist() == [0, 1]


@pytest.mark.parametrize("epsilon", ["", "<epsilon = 0.1>"])
def test_constants_pass_through_batchnorm_and_a_scale_of_zero_makes_one(epsilon: str) -> None:
    affine = {"s": random(8, seed=1), "c": random(8, seed=2), "mean": random(8, seed=3), "var": np.abs(random(8)) + 1}
    affine["s"][6] = 0
    lines = lines_of(image(f"m = BatchNormalization {epsilon} (h, s, c, mean, var)", **affine))
    assert np.flatnonzero(np.isfinite(lines["m"].numbers)).tolist() == [0, 1, 2, 3, 6]


# -- folding --------------------------------------------------------------------------------------------------------


def fold(model: ir.Model) -> tuple[int, float, list[str], ir.Model]:
    """Return how many units go, how far the outputs move, what had to stay, and what is left of a model."""
    original = model.clone()
    model = model.clone()
    Normalise()(model)
    done = RemoveDeadUnits()
    done(model)
    Tidy()(model)
    feeds = runtime.working_inputs(original, count=2)
    return done.removed, max(runtime.compare(original, model, f).max_rel for f in feeds), done.left, model


def head(last: str, output: str = "float[N,4] y", opset: int = 20, **weights: npt.NDArray[np.generic]) -> ir.Model:
    text = f"agraph (float[N,3] x) => ({output}) {{ h = Gemm <transB = 1> (x, w, b) r = Relu(h) {last} }}"
    return graph(text, {**first_layer(), "v": random(8, 4), **weights}, opset=opset)


@pytest.mark.parametrize(
    "last",
    [
        "y = Gemm(r, v)",
        "y = Gemm(r, v, c)",
        "y = Gemm <alpha = 0.5> (r, v, c)",
        "y = Gemm <alpha = 0.5> (r, v)",
        "y = Gemm <alpha = 3.0, beta = 0.5> (r, v, c)",
        "y = Gemm <transB = 1> (r, u, c)",
        "y = MatMul(r, v)",
        "z = MatMul(r, v) y = Relu(z)",
        "z = MatMul(r, v) s = Sigmoid(z) t = Relu(z) y = Add(s, t)",
    ],
)
def test_what_a_constant_adds_moves_into_the_bias(last: str) -> None:
    removed, difference, left, model = fold(head(last, u=random(4, 8), c=random(4)))
    assert (removed, left) == (DEAD, []) and difference < 1e-6
    assert [v.name for v in model.graph.outputs] == ["y"]


def test_the_sum_behind_a_product_takes_the_place_of_an_output() -> None:
    """z is an output and is read too; both must see the sum."""
    removed, difference, _, model = fold(head("z = MatMul(r, v) y = Relu(z)", "float[N,4] y, float[N,4] z"))
    assert removed == DEAD and difference < 1e-6
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    relu = [n for n in model.graph if n.op_type == "Relu"][-1]
    assert relu.inputs[0] is model.graph.outputs[1]


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ("y = Gemm <beta = 0.0> (r, v, c)", "nothing can be added to a bias that does not count"),
        ("y = Gemm(r, v, one)", "the bias is one number for all"),
        ("q = Gemm(x, c8, c) p = Gemm(r, v, c) y = Add(p, q)", "another layer reads the bias"),
        ("p = MatMul(r, v) q = MatMul(h, v) y = Add(p, q)", "another layer reads the weights"),
    ],
)
def test_nothing_is_folded_where_it_would_change_something_else(last: str, why: str) -> None:
    model = head(last, c=random(4), one=random(1), c8=random(3, 4))
    before = {name: array(model, name) for name in model.graph.initializers}
    structure = analyse(model)
    folded, _ = fold_constants(structure, constant_channels(structure))
    assert not folded, why
    assert all((array(model, name) == content).all() for name, content in before.items())
    assert fold(model)[1] < 1e-6


def test_weights_that_are_an_output_stay() -> None:
    text = "agraph (float[N,3] x) => (float[N,4] y, float[8,4] v) { h = Gemm <transB = 1> (x, w, b) y = MatMul(h, v) }"
    model = graph(text, {**first_layer(), "v": random(8, 4)})
    structure = analyse(model)
    assert fold_constants(structure, constant_channels(structure)) == (0, [])


@pytest.mark.parametrize("last", ["y = Conv(r, v, c)", "y = Conv(r, v)", "y = Conv <strides = [2, 2]> (r, v, c)"])
def test_a_convolution_without_padding_takes_constants_into_its_bias(last: str) -> None:
    model = image("r = Relu(h) m = Identity(r)", v=random(4, 8, 3, 3), c=random(4))
    text = f"agraph (float[N,3,6,6] x) => (float[N,C,H,W] y) {{ h = Conv(x, w, b) r = Relu(h) {last} }}"
    model = graph(text, {**first_layer(1), "v": random(4, 8, 3, 3), "c": random(4)})
    removed, difference, left, _ = fold(model)
    assert (removed, left) == (DEAD, []) and difference < 1e-6


def test_a_padded_convolution_takes_only_constants_that_are_zero() -> None:
    text = """agraph (float[N,3,6,6] x) => (float[N,C,H,W] y) {
        h = Conv(x, w, b) r = Relu(h) y = Conv <pads = [1, 1, 0, 0]> (r, v, c) }"""
    removed, difference, left, model = fold(graph(text, {**first_layer(1), "v": random(4, 8, 3, 3), "c": random(4)}))
    assert removed == 2 and difference < 1e-6  # relu of -1.5 and of 0
    assert left and "2 constant channels stay" in left[0]
    assert array(model, "w").shape[0] == 6


def test_a_grouped_convolution_keeps_its_constants() -> None:
    text = """agraph (float[N,3,6,6] x) => (float[N,C,H,W] y) {
        h = Conv(x, w, b) y = Conv <group = 2> (h, v) }"""
    removed, difference, _, _ = fold(graph(text, {**first_layer(1), "v": random(4, 4, 1, 1)}))
    assert removed == 0 and difference == 0


def test_half_precision_stays_half_precision() -> None:
    text = "agraph (float16[N,3] x) => (float16[N,4] y) { h = Gemm <transB = 1> (x, w, b) LAST }"
    for last in ("y = MatMul(h, v)", "y = Gemm(h, v)", "y = Gemm(h, v, c)"):
        weights = {**first_layer(), "v": random(8, 4), "c": random(4)}
        model = graph(text.replace("LAST", last), {k: a.astype(np.float16) for k, a in weights.items()})
        removed, difference, _, smaller = fold(model)
        assert removed == DEAD and difference < 1e-2
        assert {v.dtype for v in smaller.graph.initializers.values()} == {ir.DataType.FLOAT16}


def test_a_new_bias_gets_a_name_of_its_own() -> None:
    model = head("y_bias = Neg(x) t = MatMul(x, y_bias_) q = Add(y_bias, t) y = MatMul(r, v)", y_bias_=random(3, 3))
    removed, difference, _, smaller = fold(model)
    assert removed == DEAD and difference < 1e-6
    names = [v.name for node in smaller.graph for v in node.outputs] + list(smaller.graph.initializers)
    assert len(names) == len(set(names))


def test_only_units_that_could_go_are_folded() -> None:
    """h is an output: its units stay, so nothing of them moves."""
    model = head("y = MatMul(h, v)", "float[N,4] y, float[N,8] h")
    structure = analyse(model)
    assert fold_constants(structure, constant_channels(structure)) == (0, [])


def test_columns_that_are_zero_already_are_not_folded_again() -> None:
    model = head("y = Gemm(r, v, c)", c=random(4))
    v = array(model, "v")
    v[:2] = 0
    set_array(model, "v", v)
    structure = analyse(model)
    assert fold_constants(structure, constant_channels(structure))[0] == 2
    assert (array(model, "v")[:DEAD] == 0).all() and (array(model, "v")[DEAD:] == v[DEAD:]).all()
    again = analyse(model)
    assert fold_constants(again, constant_channels(again))[0] == 0
