"""The column sweep of SparseGPT: by hand, against its own definition, and against least squares on the same zeros."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from onnxprune.graph.linear import Linear
from onnxprune.recovery import methods
from onnxprune.recovery.fitting import Layer, outputs_at_once
from onnxprune.recovery.methods import propose
from onnxprune.recovery.solve import Affine, ridge_fit
from onnxprune.recovery.sparsegpt import choose_pattern, choose_support, inverse_factor, sweep_choosing
from onnxprune.runtime.statistics import Moments

RNG = np.random.default_rng(0)
A = RNG.standard_normal((50, 6)) @ RNG.standard_normal((6, 6))
H = A.T @ A
W = RNG.standard_normal((4, 6))


def error(weight: np.ndarray) -> float:
    return float(np.square(A @ (weight - W).T).sum())


def swept(weight: np.ndarray, factor: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Zero what is outside the support, column by column; what is left of each row makes up for it (equation 4)."""
    w = weight.copy()
    for j in range(w.shape[1]):
        moved = np.where(support[:, j], 0.0, w[:, j] / factor[j, j])
        w[:, j:] -= np.outer(moved, factor[j, j:])
        w[~support[:, j], j] = 0.0
    return w


def test_what_two_equal_inputs_did_the_second_does_alone() -> None:
    """H = [[1, .5], [.5, 1]]: zeroing w1 = 2 adds w1 [H^-1]_12 / [H^-1]_11 = -1/2 w1, subtracted: w2 = 3 + 1."""
    factor = inverse_factor(np.array([[1.0, 0.5], [0.5, 1.0]]))
    found = swept(np.array([[2.0, 3.0]]), factor, np.array([[False, True]]))
    np.testing.assert_allclose(found, [[0.0, 4.0]])


def test_a_row_of_the_factor_is_the_update_of_what_is_left_from_there_on() -> None:
    """Equation 4 of SparseGPT: zeroing column j by the inverse over the columns from j on."""
    factor = inverse_factor(H)
    for j in range(6):
        inverse = np.linalg.inv(H[j:, j:])
        np.testing.assert_allclose(factor[j, j:] / factor[j, j], inverse[0] / inverse[0, 0], atol=1e-9)
        np.testing.assert_allclose(factor[j, j] ** 2, inverse[0, 0])


def test_given_zeros_least_squares_is_nearer_than_the_sweep_and_the_sweep_than_nothing() -> None:
    support = RNG.random(W.shape) < 0.6
    by_sweep = swept(W, inverse_factor(H), support)
    assert ((by_sweep != 0) == support).all()
    z = A @ W.T
    moments = Moments(len(A), A.sum(0)[None], z.sum(0)[None], H[None], (A.T @ z)[None], (z**2).sum(0)[None])
    fitted = ridge_fit(moments, Affine(W[None], np.zeros((1, 4))), support[None], 0.0, with_bias=False)
    assert error(fitted.weight[0]) < error(by_sweep) < error(np.where(support, W, 0.0))


@pytest.mark.parametrize("block", [1, 2, 6])
def test_zeros_are_chosen_where_they_cost_least_as_the_sweep_comes_by(block: int) -> None:
    factor = inverse_factor(H)
    zeros = [block * 2] * (6 // block)
    found, support = sweep_choosing(W, factor, zeros, block)
    w = W.copy()
    for start in range(0, 6, block):
        cost = np.square(w[:, start : start + block] / np.diag(factor)[start : start + block])
        gone = cost <= np.sort(cost.reshape(-1))[2 * block - 1]
        assert ((~support[:, start : start + block]) == gone).all()
        mask = np.ones(w.shape, bool)
        mask[:, start : start + block] = ~gone
        w[:, start:] = swept(w, factor, mask)[:, start:]
    np.testing.assert_allclose(found, w, atol=1e-12)


def test_as_many_go_as_were_asked_for_and_the_choice_beats_magnitude() -> None:
    support = choose_support(W[None], H[None], 10)[1][0]
    assert (~support).sum() == 10
    smallest = np.abs(W) > np.sort(np.abs(W).reshape(-1))[9]
    z = A @ W.T
    moments = Moments(len(A), A.sum(0)[None], z.sum(0)[None], H[None], (A.T @ z)[None], (z**2).sum(0)[None])
    start = Affine(W[None], np.zeros((1, 4)))
    ours, theirs = (ridge_fit(moments, start, s[None], 0.0, with_bias=False).weight[0] for s in (support, smallest))
    assert error(ours) < error(theirs)


def test_a_pattern_is_kept_for_each_kernel_position() -> None:
    """Two of every four input channels, at each of three positions: columns run channel by channel."""
    a = RNG.standard_normal((60, 24))
    w = RNG.standard_normal((1, 5, 24))
    found, support = choose_pattern(w, (a.T @ a)[None], (2, 4), places=3)
    channels = support.reshape(5, 2, 4, 3)
    assert (channels.sum(axis=2) == 2).all()
    assert ((found != 0) == support).all()


def test_a_narrow_layer_is_chosen_from_in_several_blocks() -> None:
    """Of a layer of one block no choice would see what earlier columns left behind."""
    ours, of_one_block = 0.0, 0.0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        a = rng.standard_normal((200, 64)) @ rng.standard_normal((64, 64))
        h, w = a.T @ a, rng.standard_normal((16, 64))
        weight, support = choose_support(w[None], h[None], 512)
        assert (~support).sum() == 512
        ours += float(np.square(a @ (weight[0] - w).T).sum())
        swept_once, _ = sweep_choosing(w, inverse_factor(h), [512], block=64)
        of_one_block += float(np.square(a @ (swept_once - w).T).sum())
    assert ours < 0.95 * of_one_block


def test_the_factor_is_found_in_the_memory_of_the_matrix() -> None:
    """Of a layer of 11,008 inputs the matrix is 1 GB: the factor is one more, and what is done on the way a part."""
    a = np.random.default_rng(0).standard_normal((1200, 1024))
    hessian = a.T @ a
    tracemalloc.start()
    factor = inverse_factor(hessian)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.8 * hessian.nbytes
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(hessian), atol=1e-9)
    assert not np.tril(factor, -1).any()


def test_the_head_of_a_language_model_is_fitted_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts of a layer of 512 inputs hold little more than half of what it takes in one piece."""
    inputs, outputs = 512, 12_288
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((1, outputs, inputs), dtype=np.float32)
    support = np.abs(weight) > 0.67
    a = rng.standard_normal((1024, 32), dtype=np.float32) @ rng.standard_normal((32, inputs), dtype=np.float32)
    a += rng.standard_normal(a.shape, dtype=np.float32)
    folds = [_moments(a[half], weight[0]) for half in (slice(0, 768), slice(768, None))]
    start = Affine(np.where(support, weight, np.float32(0)), np.zeros((1, outputs)))
    linear = cast(Linear, SimpleNamespace(places=1))
    layer = Layer(linear, start, support, False, weight, weight, np.ones((1, outputs)))
    assert outputs_at_once(layer) == 4096

    def peak() -> int:
        tracemalloc.start()
        proposal = propose("sparsegpt", layer, folds)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert proposal.after < proposal.before and (proposal.affine.weight == 0).sum() == (~support).sum()
        return held

    in_parts = peak()
    monkeypatch.setattr(methods, "outputs_at_once", lambda _: outputs)
    assert in_parts < 0.65 * peak()


def _moments(a: np.ndarray, weight: np.ndarray) -> Moments:
    z = a @ weight.T
    return Moments(len(a), a.sum(0)[None].astype(float), z.sum(0)[None], (a.T @ a)[None].astype(float), (a.T @ z)[None],
                   np.square(z).sum(0)[None])  # fmt: skip
