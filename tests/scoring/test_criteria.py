"""Every criterion against a case small enough to do by hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from onnxprune.errors import DataError, RecipeError
from onnxprune.passes import Normalise
from onnxprune.scoring import Evidence, criteria, find_criterion, prunable_weights, unit_scores
from onnxprune.scoring.elimination import Consumer, eliminate
from onnxprune.structure.analysis import analyse
from onnxprune.structure.structure import Structure

RNG = np.random.default_rng(0)

ONE_LAYER = """<ir_version: 8, opset_import: ["": 13]>
one (float[N, 2] x) => (float[N, 2] y) { y = Gemm<transB = 1>(x, w) }"""
W = np.array([[1.0, -2.0], [3.0, 0.5]], np.float32)

TWO_LAYERS = """<ir_version: 8, opset_import: ["": 13]>
two (float[N, 2] x) => (float[N, 2] y) {
  h = Gemm<transB = 1>(x, w1)
  r = Relu(h)
  y = Gemm<transB = 1>(r, w2)
}"""
W1 = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, -1.0]], np.float32)  # three hidden units
W2 = np.array([[1.0, -1.0, 0.5], [2.0, 0.25, -1.0]], np.float32)

CONVOLUTION = """<ir_version: 8, opset_import: ["": 13]>
conv (float[N, 1, 4, 4] x) => (float[N, 1, 4, 4] y) {
  c = Conv(x, w1)
  n = BatchNormalization(c, scale, shift, mean, var)
  r = Relu(n)
  y = Conv(r, w2)
}"""


def structure_of(text: str, constants: Mapping[str, npt.NDArray[np.float32]]) -> Structure:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    model = ir.from_proto(proto)
    Normalise()(model)
    return analyse(model)


def saliency(
    name: str, structure: Structure, weight: str = "w", inputs: npt.NDArray[np.float32] | None = None,
    labels: npt.NDArray[np.generic] | None = None, seed: int = 0,
) -> npt.NDArray[np.float32]:  # fmt: skip
    evidence = None if inputs is None else Evidence(structure, {"x": inputs}, labels)
    found = next(w for w in prunable_weights(structure) if w.name == weight)
    return find_criterion(name).on(evidence).saliency(found, np.random.default_rng(seed))


def scores(
    name: str, structure: Structure, inputs: npt.NDArray[np.float32] | None = None,
    labels: npt.NDArray[np.generic] | None = None, **settings: int,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """The scores of the only group, before they are divided by their mean."""
    evidence = None if inputs is None else Evidence(structure, {"x": inputs}, labels, **settings)
    (group,) = structure.groups
    criterion = find_criterion(name).on(evidence)
    assert criterion.units is not None
    return criterion.units(structure, prunable_weights(structure), group, criterion.context(RNG))


# -- weights alone --------------------------------------------------------------------------------------------------


def test_magnitude_and_l1() -> None:
    structure = structure_of(ONE_LAYER, {"w": W})
    assert saliency("magnitude", structure).tolist() == [[1, 4], [9, 0.25]]
    assert saliency("l1", structure).tolist() == [[1, 2], [3, 0.5]]


def test_magnitude_of_a_unit_is_the_norm_of_all_that_goes_with_it() -> None:
    structure = structure_of(TWO_LAYERS, {"w1": W1, "w2": W2})
    (group,) = structure.groups
    raw = np.sqrt([1 + 1 + 4, 4 + 1 + 0.0625, 2 + 0.25 + 1])
    found = unit_scores(structure, prunable_weights(structure), [group], find_criterion("magnitude"), 0)[group.atoms]
    np.testing.assert_allclose(found, raw / raw.mean())


def test_random_is_of_the_seed() -> None:
    structure = structure_of(ONE_LAYER, {"w": W})
    first, again, other = (saliency("random", structure, seed=seed) for seed in (0, 0, 1))
    assert (first == again).all() and len(np.unique(first)) == W.size
    assert not np.intersect1d(first, other).size


def test_lamp_divides_by_what_is_no_smaller() -> None:
    """Squares 1, 4, 9, 0.25: of 4 it is 4 / (4 + 9)."""
    expected = [[1 / 14, 4 / 13], [1.0, 0.25 / 14.25]]
    np.testing.assert_allclose(saliency("lamp", structure_of(ONE_LAYER, {"w": W})), expected, rtol=1e-6)


def convolution() -> Structure:
    rng = np.random.default_rng(0)
    return structure_of(
        CONVOLUTION,
        {
            "w1": rng.standard_normal((3, 1, 1, 1)).astype(np.float32), "w2": np.ones((1, 3, 1, 1), np.float32),
            "scale": np.array([0.5, -2.0, 1.0], np.float32), "shift": np.zeros(3, np.float32),
            "mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32),
        },
    )  # fmt: skip


def test_batchnorm_scale() -> None:
    assert scores("bn-scale", convolution()).tolist() == [0.5, 2.0, 1.0]


def test_batchnorm_scale_without_batchnorm_is_refused() -> None:
    with pytest.raises(RecipeError, match="no BatchNormalization"):
        scores("bn-scale", structure_of(TWO_LAYERS, {"w1": W1, "w2": W2}))


def test_geometric_median_is_the_sum_of_distances_to_the_other_units() -> None:
    a, b, c = W1
    expected = [
        np.linalg.norm(a - b) + np.linalg.norm(a - c),
        np.linalg.norm(b - a) + np.linalg.norm(b - c),
        np.linalg.norm(c - a) + np.linalg.norm(c - b),
    ]
    np.testing.assert_allclose(scores("fpgm", structure_of(TWO_LAYERS, {"w1": W1, "w2": W2})), expected, rtol=1e-6)


def test_synflow_is_the_flow_through_magnitudes() -> None:
    """R = 1^T |W2| |W1| 1; for a hidden unit i: |w1_ij| * sum_k |w2_ki|. All over the largest."""
    structure = structure_of(TWO_LAYERS, {"w1": W1, "w2": W2})
    first, second = np.abs(W1) * np.abs(W2).sum(0)[:, None], np.abs(W2) * np.abs(W1).sum(1)
    peak = max(first.max(), second.max())
    np.testing.assert_allclose(saliency("synflow", structure, "w1"), first / peak, rtol=1e-6)
    np.testing.assert_allclose(saliency("synflow", structure, "w2"), second / peak, rtol=1e-6)


# -- activations ----------------------------------------------------------------------------------------------------

X = np.array([[1.0, 2.0], [3.0, -1.0], [-1.0, 0.0]], np.float32)
H = np.maximum(X @ W1.T, 0)


def test_wanda_weighs_by_the_norm_of_the_input() -> None:
    power = np.square(X).mean(0)
    np.testing.assert_allclose(saliency("wanda", structure_of(ONE_LAYER, {"w": W}), inputs=X), W**2 * power, rtol=1e-6)


def test_wanda_of_a_grouped_convolution_takes_each_groups_own_inputs() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]>
    g (float[N, 4, 2, 2] x) => (float[N, 2, 2, 2] y) { y = Conv<group = 2>(x, w) }"""
    x = np.random.default_rng(0).standard_normal((5, 4, 2, 2)).astype(np.float32)
    w = np.array([[[[1.0]], [[2.0]]], [[[3.0]], [[4.0]]]], np.float32)
    power = np.square(x).mean((0, 2, 3)).reshape(2, 2)
    found = saliency("wanda", structure_of(text, {"w": w}), inputs=x)
    np.testing.assert_allclose(found[:, :, 0, 0], w[:, :, 0, 0] ** 2 * power, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("activation", H.mean(0)), ("apoz", (H > 0).mean(0)), ("variance", H.var(0))],
)
def test_activations_are_those_that_consumers_read(name: str, expected: npt.NDArray[np.float64]) -> None:
    structure = structure_of(TWO_LAYERS, {"w1": W1, "w2": W2})
    np.testing.assert_allclose(scores(name, structure, X), expected, rtol=1e-5)


# -- second order ---------------------------------------------------------------------------------------------------


def damped_inverse(a: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    hessian = a.T.astype(np.float64) @ a / len(a)
    return np.linalg.inv(hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(len(hessian)))


def test_obc_is_the_error_left_when_the_others_adapt() -> None:
    expected = W**2 / np.diag(damped_inverse(X))
    np.testing.assert_allclose(saliency("obc", structure_of(ONE_LAYER, {"w": W}), inputs=X), expected, rtol=1e-5)


def left_error(inverse: npt.NDArray[np.float64], gone: list[int]) -> float:
    """The squared error that is left when inputs of W2 are gone and all others have adapted."""
    block = inverse[np.ix_(gone, gone)]
    return float(np.trace(W2[:, gone] @ np.linalg.solve(block, W2[:, gone].T)))


def test_obc_of_units_is_what_each_costs_when_the_cheaper_ones_are_gone() -> None:
    inverse, gone, costs = damped_inverse(H), [], {}
    while len(gone) < 3:
        before = left_error(inverse, gone) if gone else 0.0
        added = {i: left_error(inverse, [*gone, i]) - before for i in range(3) if i not in gone}
        cheapest = min(added, key=lambda i: added[i])
        costs[cheapest] = max(added[cheapest], *costs.values(), 0.0)
        gone.append(cheapest)
    structure = structure_of(TWO_LAYERS, {"w1": W1, "w2": W2})
    np.testing.assert_allclose(scores("obc", structure, X) ** 2, [costs[i] for i in range(3)], rtol=1e-5)


def test_of_two_units_that_do_the_same_one_is_free_and_one_is_dear() -> None:
    """x1 = x2, E[x^2] = 2: the first costs next to nothing, the second (w1 + w2)^2 E[x^2]."""
    x = np.array([[2.0], [1.0], [-1.0]])
    inverse = np.linalg.inv(np.hstack([x, x]).T @ np.hstack([x, x]) / 3 + 1e-6 * np.eye(2))
    found = eliminate([Consumer(np.array([[[1.0, 1.5]]]), inverse[None], {0: np.array([0]), 1: np.array([1])})], 2)
    np.testing.assert_allclose(found, [0.0, 2.5**2 * 2.0], atol=1e-3)


def test_obd_of_a_linear_model_is_exact() -> None:
    """L = |y - t|^2 / 2 over rows: h of w_oi is E[x_i^2]. The labels are noise, so it is a mean over draws."""
    x = np.tile(np.array([[1.0, 2.0]], np.float32), (256, 1))
    text = ONE_LAYER.replace("float[N, 2] y) {", "float[N, 2, 1] y) { ax = Constant<value_ints = [2]>() z = ").replace(
        "y = Gemm<transB = 1>(x, w)", "Gemm<transB = 1>(x, w) y = Unsqueeze(z, ax)"
    )
    found = saliency("obd", structure_of(text, {"w": W}), inputs=x)
    np.testing.assert_allclose(found, 0.5 * W**2 * np.array([1.0, 4.0]), rtol=0.25)


# -- gradients ------------------------------------------------------------------------------------------------------

T = np.array([[0.5, 1.0], [1.0, 0.0], [-1.0, 2.0]], np.float32)  # targets: the loss is the mean of (y - t)^2


def gradient(rows: slice = slice(None)) -> npt.NDArray[np.float64]:
    """dL/dW of one layer: 2 (y - t)^T x / (rows * outputs)."""
    x, t = X[rows].astype(np.float64), T[rows]
    return 2 * (x @ W.T - t).T @ x / t.size


def test_taylor_and_snip() -> None:
    structure = structure_of(ONE_LAYER, {"w": W})
    np.testing.assert_allclose(saliency("taylor", structure, inputs=X, labels=T), (gradient() * W) ** 2, rtol=1e-5)
    np.testing.assert_allclose(saliency("snip", structure, inputs=X, labels=T), np.abs(gradient() * W), rtol=1e-5)


def test_taylor_of_a_unit_is_the_sum_before_the_magnitude() -> None:
    structure = structure_of(TWO_LAYERS, {"w1": W1, "w2": W2})
    back = 2 * (H @ W2.T - T) / T.size
    g2, g1 = back.T @ H, ((back @ W2) * (H > 0)).T @ X
    products = np.hstack([g1 * W1, (g2 * W2).T])  # a row for each hidden unit
    expected = np.abs(products.sum(1))
    assert not np.allclose(expected, np.abs(products).sum(1), rtol=1e-2)  # else the order would not show
    np.testing.assert_allclose(scores("taylor-unit", structure, X, T), expected, rtol=1e-4)


def test_fisher_is_the_mean_of_squares_not_the_square_of_the_mean() -> None:
    squares = np.mean([gradient(slice(i, i + 1)) ** 2 for i in range(3)], axis=0)
    found = saliency("fisher", structure_of(ONE_LAYER, {"w": W}), inputs=X, labels=T)
    np.testing.assert_allclose(found, 0.5 * squares * W**2, rtol=1e-5)


def test_grasp_is_w_times_hessian_times_gradient() -> None:
    """The Hessian of the mean square over outputs is x x^T, the same for each output."""
    hessian = 2 * X.T.astype(np.float64) @ X / T.size
    expected = W * (gradient() @ hessian)
    found = saliency("grasp", structure_of(ONE_LAYER, {"w": W}), inputs=X, labels=T)
    np.testing.assert_allclose(found, expected - expected.min(), rtol=1e-4, atol=1e-5)


def test_class_numbers_mean_cross_entropy() -> None:
    labels = np.array([0, 1, 1])
    z = X @ W.T
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    expected = (p - np.eye(2)[labels]).T @ X / 3 * W
    found = saliency("snip", structure_of(ONE_LAYER, {"w": W}), inputs=X, labels=labels)
    np.testing.assert_allclose(found, np.abs(expected), rtol=1e-5)


def test_gates_close_on_the_unit_that_does_nothing() -> None:
    """Two hidden units give the targets exactly; the third reaches the outputs by a weight near zero."""
    w1, w2 = np.eye(3, 2, dtype=np.float32), np.array([[1, 0, 0.01], [0, 1, -0.01]], np.float32)
    w1[2] = 1.0
    x = np.abs(np.random.default_rng(0).standard_normal((64, 2))).astype(np.float32)
    found = scores("gates", structure_of(TWO_LAYERS, {"w1": w1, "w2": w2}), x, x.copy(), steps=120)
    assert found[2] < 0.3 < 0.7 < min(found[:2])


# -- the registry ---------------------------------------------------------------------------------------------------


def test_every_criterion_says_where_it_is_from_and_what_it_needs() -> None:
    for criterion in criteria().values():
        assert criterion.source and criterion.formula and criterion.cost
        assert criterion.needs in ("nothing", "calibration", "labels", "training")


def test_missing_data_are_asked_for() -> None:
    structure = structure_of(ONE_LAYER, {"w": W})
    with pytest.raises(DataError, match="needs calibration data"):
        find_criterion("wanda").on(None)
    with pytest.raises(DataError, match="needs calibration data"):
        saliency("wanda", structure)
    with pytest.raises(DataError, match="needs labelled data"):
        saliency("snip", structure, inputs=X)


def test_a_criterion_for_units_does_not_rank_single_weights() -> None:
    with pytest.raises(RecipeError, match="whole units"):
        saliency("apoz", structure_of(ONE_LAYER, {"w": W}), inputs=X)


def test_a_weight_whose_inputs_cannot_be_measured_is_named() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]>
    t (float[N, 4, 3, 3] x) => (float[N, 2, 5, 5] y) { y = ConvTranspose(x, w) }"""
    structure = structure_of(text, {"w": np.ones((4, 2, 3, 3), np.float32)})
    with pytest.raises(RecipeError, match="'w' cannot be measured"):
        saliency("wanda", structure, inputs=np.zeros((2, 4, 3, 3), np.float32))
