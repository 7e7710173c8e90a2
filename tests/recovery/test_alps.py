"""ALPS and the fit within a support, against hand-made cases and plain solutions."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from onnxprune.recipe.granularity import NM
from onnxprune.recovery import fitting, recover
from onnxprune.recovery.alps import DAMPING, Spectrum, alps, keep_largest, keep_pattern
from onnxprune.recovery.fitting import Layer, best_ridge
from onnxprune.recovery.methods import propose
from onnxprune.recovery.quadratic import Quadratic, fit_within
from onnxprune.recovery.solve import RIDGES, Affine
from onnxprune.recovery.sparsegpt import choose_support, inverse_factor
from onnxprune.runtime.statistics import Moments

from .models_to_recover import MLP, MLP_SHAPES, constant, correlated, network, zeroed


def sums(a: np.ndarray, w: np.ndarray) -> Moments:
    z = a @ w.T
    return Moments(len(a), a.sum(0)[None], z.sum(0)[None], (a.T @ a)[None], (a.T @ z)[None], (z**2).sum(0)[None])


def problem(seed: int, outputs: int = 24, inputs: int = 32) -> tuple[np.ndarray, Quadratic]:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((400, inputs)) @ rng.standard_normal((inputs, inputs)) * rng.uniform(0.2, 3, inputs)
    w = rng.standard_normal((outputs, inputs))
    return w, Quadratic.of(sums(a, w), np.zeros((1, outputs)), with_bias=False)


def error(q: Quadratic, target: np.ndarray, weight: np.ndarray) -> float:
    gap = weight - target
    return float(np.einsum("gok,gkl,gol->", gap, q.gram, gap))


def test_of_two_inputs_that_are_alike_the_larger_stays_and_takes_over() -> None:
    """H = [[1.01, 1], [1, 1.01]], W0 = (2, 3), one weight stays: w = 3 + 2 H_12 / H_22 = 3 + 2 / 1.01."""
    target = np.array([[[2.0, 3.0]]])
    gram = np.ones((1, 2, 2))
    _, support = alps(target, Spectrum.of(gram), keep_largest(1))
    assert support.tolist() == [[[False, True]]]
    q = Quadratic(gram, target @ gram, np.ones((1, 2)))
    assert fit_within(q, target, support, DAMPING)[0, 0, 1] == pytest.approx((5 + DAMPING * 3) / (1 + DAMPING))
    q = Quadratic(gram + DAMPING * np.eye(2), target @ (gram + DAMPING * np.eye(2)), np.ones((1, 2)))
    assert fit_within(q, target, support, 0.0)[0, 0, 1] == pytest.approx(3 + 2 / 1.01)


def test_the_first_turn_is_that_of_the_paper() -> None:
    """W = (H W0 - V + r D) (H + r)^-1 with V = 0, D = (0, 3), r = .1, by solving the two equations."""
    h = np.array([[1 + DAMPING, 0.5], [0.5, 1 + DAMPING]])
    w0, d = np.array([2.0, 3.0]), np.array([0.0, 3.0])
    expected = np.linalg.solve(h + 0.1 * np.eye(2), h @ w0 + 0.1 * d)
    seen: list[np.ndarray] = []

    def project(weight: np.ndarray) -> np.ndarray:
        seen.append(np.array(weight))
        return keep_largest(1)(weight)

    alps(w0[None, None], Spectrum.of((h - DAMPING * np.eye(2))[None]), project)
    np.testing.assert_allclose(seen[1][0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_alps_is_nearer_than_the_sweep_of_sparsegpt_and_keeps_as_many(seed: int) -> None:
    w, q = problem(seed)
    target = q.scaled(w[None])
    damped = q.gram + DAMPING * np.eye(len(q.gram[0]))
    count = round(0.3 * w.size)
    weight, support = alps(target, Spectrum.of(q.gram), keep_largest(count))
    swept, _ = choose_support(target, damped, w.size - count)
    assert np.count_nonzero(weight) == support.sum() == count
    assert error(q, target, fit_within(q, weight, support, 1e-3)) < error(q, target, swept)


def test_a_pattern_is_kept_to_at_each_kernel_position() -> None:
    """Columns are channels by positions: of channels 0 to 3 two stay at each of three positions."""
    weight = np.random.default_rng(0).standard_normal((1, 5, 24))
    support = keep_pattern(2, 4, 3)(weight)
    assert (support.reshape(1, 5, 2, 4, 3).sum(axis=3) == 2).all()
    first = np.abs(weight[0, 0].reshape(2, 4, 3)[0, :, 1])
    assert set(np.flatnonzero(support[0, 0].reshape(2, 4, 3)[0, :, 1])) == set(np.argsort(-first)[:2])


def test_conjugate_gradients_find_what_solving_each_output_finds() -> None:
    w, q = problem(0, outputs=6, inputs=10)
    rng = np.random.default_rng(1)
    support, start, ridge = rng.random((1, 6, 10)) < 0.6, rng.standard_normal((1, 6, 10)), 0.1
    found, exact = fit_within(q, start, support, ridge), np.zeros((1, 6, 10))
    for row in range(6):
        s = np.flatnonzero(support[0, row])
        block = q.gram[0][np.ix_(s, s)] + ridge * np.eye(len(s))
        exact[0, row, s] = np.linalg.solve(block, q.target[0, row, s] + ridge * start[0, row, s])
    np.testing.assert_allclose(found, exact, atol=0.01 * np.abs(exact).max())
    assert (found[~support] == 0).all()


def test_the_inputs_of_the_error_have_a_mean_square_of_one() -> None:
    w, q = problem(2)
    np.testing.assert_allclose(np.diagonal(q.gram, axis1=1, axis2=2), 1)
    np.testing.assert_allclose(q.target, q.scaled(w[None]) @ q.gram, rtol=1e-6, atol=1e-6)


def test_an_input_that_is_always_zero_does_no_harm() -> None:
    a = np.random.default_rng(0).standard_normal((50, 4))
    a[:, 2] = 0
    q = Quadratic.of(sums(a, np.ones((3, 4))), np.zeros((1, 3)), with_bias=True)
    weight, support = alps(q.scaled(np.ones((1, 3, 4))), Spectrum.of(q.gram), keep_largest(6))
    assert np.isfinite(weight).all()
    assert support.sum() == 6


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_matrix_without_full_rank_is_factorised(rank: int) -> None:
    a = np.random.default_rng(0).standard_normal((rank, 12))
    hessian = a.T @ a
    factor = inverse_factor(hessian)
    assert np.isfinite(factor).all()
    np.testing.assert_array_equal(factor, np.triu(factor))


def test_the_factor_is_that_of_the_inverse() -> None:
    a = np.random.default_rng(0).standard_normal((40, 7))
    factor = inverse_factor(a.T @ a)
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(a.T @ a), rtol=1e-8)


@pytest.mark.parametrize("method", ["least-squares", "obc", "sparsegpt", "alps", "sparseswaps"])
def test_inputs_that_are_all_alike_are_recovered_without_an_error(method: str) -> None:
    """One sample over and over: the Gram matrix has rank one."""
    dense = network(MLP, MLP_SHAPES)
    rng = np.random.default_rng(0)
    pruned = zeroed(dense, {n: rng.random(MLP_SHAPES[n]) < 0.3 for n in ("w1", "w2")})
    zeros = {n: int((constant(pruned, n) == 0).sum()) for n in ("w1", "w2")}
    x = np.repeat(correlated(1, (6,)), 80, axis=0)
    done = recover(dense, pruned, {}, {"x": x}, methods=(method,), batch=10)
    assert done.after <= done.before
    assert {n: int((constant(pruned, n) == 0).sum()) for n in ("w1", "w2")} == zeros


@pytest.mark.parametrize(("stay", "of", "places"), [(2, 4, 1), (1, 4, 9), (3, 8, 1)])
def test_a_pattern_keeps_the_largest_and_of_equals_the_first(stay: int, of: int, places: int) -> None:
    weight = np.random.default_rng(0).integers(-3, 4, (2, 5, 3 * of * places)).astype(np.float32)
    blocks = np.abs(weight).reshape(2, 5, 3, of, places)
    rank = np.argsort(np.argsort(-blocks, axis=3, kind="stable"), axis=3)
    assert (keep_pattern(stay, of, places)(weight) == (rank < stay).reshape(weight.shape)).all()


@pytest.mark.parametrize("best", range(len(RIDGES)))
def test_the_best_ridge_is_found_wherever_it_is_and_the_search_ends_soon_behind_it(best: int) -> None:
    tried: list[float] = []

    def error(ridge: float) -> float:
        tried.append(ridge)
        return 1.0 + abs(RIDGES.index(ridge) - best)

    assert best_ridge(error) == (RIDGES[best], 1.0)
    assert len(tried) == min(best + 3, len(RIDGES))


@pytest.mark.parametrize("name", ["sparsegpt", "obc", "alps", "least-squares"])
@pytest.mark.parametrize("pattern", [None, NM(2, 4)])
def test_a_wide_layer_is_fitted_some_outputs_at_a_time(
    name: str, pattern: NM | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the memory of these; zeros are as many in each part as there were, and the error is about the same."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((400, 16)) @ rng.standard_normal((16, 16))
    w = rng.standard_normal((1, 48, 16))
    support = np.zeros(w.shape, bool)
    np.put_along_axis(support.reshape(1, 48, 4, 4), np.argsort(-np.abs(w.reshape(1, 48, 4, 4)))[..., :2], True, axis=-1)
    start = Affine(w * support, np.zeros((1, 48)))
    layer = Layer(None, start, support, False, w, w, np.ones((1, 48)), pattern)  # type: ignore[arg-type]
    if pattern is not None:
        layer = replace(layer, linear=SimpleNamespace(places=1))  # type: ignore[arg-type]
    folds = [sums(rows, w[0]) for rows in (a[:300], a[300:])]
    whole = propose(name, layer, folds)
    monkeypatch.setattr(fitting, "WEIGHTS_AT_ONCE", 16 * 16)
    assert fitting.outputs_at_once(layer) == 16
    parted = propose(name, layer, folds)
    assert parted.before == pytest.approx(whole.before) and parted.after == pytest.approx(whole.after, rel=0.2)
    assert parted.after < parted.before
    zeros = (parted.affine.weight == 0).reshape(3, -1).sum(axis=1)
    assert (zeros == (~support).reshape(3, -1).sum(axis=1)).all()
