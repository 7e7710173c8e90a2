"""Recovery: closed forms against hand-made cases, and whole networks whose error falls."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune import runtime
from onnxprune.errors import DataError, RecipeError
from onnxprune.graph.linear import linear_layers
from onnxprune.passes import RemoveBlocks, Tidy
from onnxprune.passes.remove_dead import compose_kept
from onnxprune.recipe.granularity import NM, Block
from onnxprune.recovery import recover
from onnxprune.recovery.reconstruct import stages
from onnxprune.recovery.solve import Affine, ridge_fit, squared_error
from onnxprune.runtime.statistics import Moments
from onnxprune.structure.analysis import analyse
from onnxprune.structure.blocks import residual_blocks

from .models_to_recover import (
    CONVOLUTION_SHAPES,
    CONVOLUTIONS,
    MLP,
    MLP_SHAPES,
    PRODUCT_SHAPES,
    PRODUCTS,
    constant,
    correlated,
    cut,
    network,
    zeroed,
)


def moments_of(a: np.ndarray, z: np.ndarray) -> Moments:
    return Moments(len(a), a.sum(0)[None], z.sum(0)[None], (a.T @ a)[None], (a.T @ z)[None], (z**2).sum(0)[None])


def test_what_two_equal_inputs_did_one_does_alone() -> None:
    """z = 2 a1 + 3 a2 + 1 with a1 = a2: when a2 goes, w1 becomes 5."""
    a = np.array([[1.0], [2.0], [4.0]])
    fit = ridge_fit(moments_of(a, 5 * a + 1), Affine(np.full((1, 1, 1), 2.0), np.ones((1, 1))),
                    np.ones((1, 1, 1), bool), 0.0, with_bias=True)  # fmt: skip
    assert fit.weight.item() == pytest.approx(5)
    assert fit.bias.item() == pytest.approx(1)


def test_zeroed_weights_are_made_up_for_as_by_optimal_brain_surgeon() -> None:
    """OBC, eq. 4, for weight q: w - w_q / [H^-1]_qq * H^-1[:, q]."""
    rng = np.random.default_rng(0)
    a, w = rng.standard_normal((40, 5)) @ rng.standard_normal((5, 5)), rng.standard_normal((2, 5))
    support = np.ones((1, 2, 5), bool)
    support[0, 0, 3] = support[0, 1, 1] = False
    fit = ridge_fit(moments_of(a, a @ w.T), Affine(w[None] * support, np.zeros((1, 2))), support, 0.0, with_bias=False)
    inverse = np.linalg.inv(a.T @ a)
    for row, q in ((0, 3), (1, 1)):
        expected = w[row] - w[row, q] / inverse[q, q] * inverse[:, q]
        np.testing.assert_allclose(fit.weight[0, row], expected, atol=1e-9)


def test_an_endless_ridge_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    a, z, w = rng.standard_normal((20, 4)), rng.standard_normal((20, 3)), rng.standard_normal((1, 3, 4))
    fit = ridge_fit(moments_of(a, z), Affine(w, np.zeros((1, 3))), w != 0, 1e12, with_bias=False)
    np.testing.assert_allclose(fit.weight, w, rtol=1e-6)


def test_the_error_from_sums_is_the_error_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    a, z, w, b = (rng.standard_normal(s) for s in ((20, 4), (20, 3), (3, 4), 3))
    expected = np.square(z - a @ w.T - b).sum(0)
    np.testing.assert_allclose(squared_error(moments_of(a, z), Affine(w[None], b[None]))[0], expected)


@pytest.mark.parametrize("method", ["least-squares", "bias", "moments"])
@pytest.mark.parametrize(
    ("text", "shapes", "shape", "weight", "axis", "gone"),
    [
        (MLP, MLP_SHAPES, (6,), "w1", 0, [1, 4, 6]),
        (PRODUCTS, PRODUCT_SHAPES, (5, 6), "w1", 1, [0, 2, 7]),
        (CONVOLUTIONS, CONVOLUTION_SHAPES, (4, 9, 9), "w3", 1, [1, 4]),
        (CONVOLUTIONS, CONVOLUTION_SHAPES, (4, 9, 9), "w2", 1, [0, 2]),
    ],
    ids=["gemm", "matmul", "conv outputs", "grouped conv inputs"],
)
def test_without_units_the_outputs_come_nearer(
    text: str, shapes: dict, shape: tuple[int, ...], weight: str, axis: int, gone: list[int], method: str
) -> None:
    dense = network(text, shapes)
    pruned, kept = cut(dense, weight, axis, gone)
    x = correlated(200, shape)
    before = {n: v.const_value.numpy().shape for n, v in pruned.graph.initializers.items()}
    recovered = recover(dense, pruned, kept, {"x": x}, methods=(method,), batch=20)
    assert {n: v.const_value.numpy().shape for n, v in pruned.graph.initializers.items()} == before
    fresh = {"x": correlated(100, shape, seed=9)}
    cut_only = cut(dense, weight, axis, gone)[0]
    z, plain, new = (runtime.run(runtime.make_session(m), fresh)["y"] for m in (dense, cut_only, pruned))
    error, baseline = np.square(new - z).sum(), np.square(plain - z).sum()
    if method == "least-squares":
        assert recovered.after < recovered.before
        assert error < 0.6 * baseline
    assert error <= 1.05 * baseline


def test_obc_chooses_other_zeros_of_the_same_number_and_comes_nearer() -> None:
    dense = network(MLP, MLP_SHAPES)
    masks = {"w1": np.random.default_rng(3).random((8, 6)) < 0.5}
    x = {"x": correlated(200, (6,))}
    least, chosen = zeroed(dense, masks), zeroed(dense, masks)
    given = recover(dense, least, {}, x, batch=20)
    obc = recover(dense, chosen, {}, x, methods=("obc",), batch=20)
    assert (constant(least, "w1") != 0).sum() == (constant(chosen, "w1") != 0).sum()
    assert ((constant(chosen, "w1") != 0) != masks["w1"]).any()
    assert obc.steps[0].after < given.steps[0].after
    assert obc.after < given.after


@pytest.mark.parametrize(("pattern", "moves"), [(NM(2, 3), True), (Block(1, 3), False)])
def test_obc_keeps_to_the_pattern_of_the_zeros(pattern: NM | Block, moves: bool) -> None:
    dense = network(MLP, MLP_SHAPES)
    mask = np.tile([True, False, True], (8, 2))
    pruned = zeroed(dense, {"w1": mask})
    recover(dense, pruned, {}, {"x": correlated(200, (6,))}, methods=("obc",), pattern=pattern, batch=20)
    found = constant(pruned, "w1") != 0
    assert (found.reshape(-1, 3).sum(axis=1) == 2).all()
    assert (found != mask).any() == moves


def test_batchnorm_takes_the_statistics_of_what_it_now_reads() -> None:
    """Mean and variance by channel, over three folds of four."""
    dense = network(CONVOLUTIONS, CONVOLUTION_SHAPES)
    open_ended = CONVOLUTIONS.replace("(float[N, 3] y)", "(float[N, 3] y, float[N, C, H, W] c)")
    x = correlated(160, (4, 9, 9))
    fed = runtime.run(runtime.make_session(network(open_ended, CONVOLUTION_SHAPES)), {"x": x})["c"]
    for name, array in (("mean", fed.mean((0, 2, 3))), ("var", fed.var((0, 2, 3)))):
        dense.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    pruned = dense.clone()
    for name, change in (("mean", 1.5), ("var", 1.5), ("w2", 1 + 1e-6)):
        numbers = (constant(dense, name) * change).astype(np.float32)
        pruned.graph.initializers[name].const_value = ir.Tensor(numbers, name=name)
    done = recover(dense, pruned, {}, {"x": x}, methods=("batchnorm",), batch=20)
    assert [(s.layer, s.applied) for s in done.steps] == [("mean", True)]
    used = fed[np.arange(160) // 20 % 4 != 3]
    np.testing.assert_allclose(constant(pruned, "mean"), used.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(constant(pruned, "var"), used.var((0, 2, 3)), rtol=1e-3)


def test_zeroed_weights_stay_zero_and_what_is_not_reached_stays_bit_by_bit() -> None:
    dense = network(MLP, MLP_SHAPES)
    mask = np.abs(constant(dense, "w2")) > 0.7
    pruned = zeroed(dense, {"w2": mask})
    recovered = recover(dense, pruned, {}, {"x": correlated(120, (6,))}, batch=20)
    assert recovered.after < 0.5 * recovered.before
    assert ((constant(pruned, "w2") != 0) == mask).all()
    assert (constant(pruned, "w1") == constant(dense, "w1")).all()
    assert [s.layer for s in recovered.steps] == ["w2"]


def test_a_step_that_does_not_help_is_taken_back() -> None:
    """Targets that have nothing to do with the layer's inputs cannot be learnt: the held-back error rises."""
    dense = network(MLP, MLP_SHAPES)
    pruned = zeroed(dense, {"w1": np.zeros((8, 6), bool)})
    weights = {n: constant(pruned, n) for n in MLP_SHAPES}
    recovered = recover(dense, pruned, {}, {"x": correlated(64, (6,))}, methods=("moments",), batch=8)
    for step in recovered.steps:
        assert step.applied == (step.after < step.before)
        if not step.applied:
            assert (constant(pruned, step.layer) == weights[step.layer]).all()


def test_pruning_in_steps_aims_at_the_same_dense_model() -> None:
    dense = network(MLP, MLP_SHAPES)
    x = {"x": correlated(200, (6,))}
    first, kept = cut(dense, "w1", 0, [1, 4])
    recover(dense, first, kept, x, batch=20)
    second, more = cut(first, "w1", 0, [0, 5])  # units 0 and 7 of the dense model
    kept = compose_kept(kept, more)
    assert kept["w1"][0].tolist() == [2, 3, 5, 6]
    assert kept["w2"][1].tolist() == [2, 3, 5, 6]
    recovered = recover(dense, second, kept, x, batch=20)
    assert recovered.after < recovered.before < 2


def test_what_comes_after_a_block_that_went_is_recovered() -> None:
    """y = W2 (x + W1 x): without the block, W2 can learn W2 (1 + W1); what lies before it stays."""
    text = """<ir_version: 8, opset_import: ["": 13]>
    g (float[N, 6] x) => (float[N, 3] y) {
      z = MatMul(x, w0) h = MatMul(z, w1) s = Add(z, h) y = MatMul(s, w2)
    }"""
    dense = network(text, {"w0": (6, 6), "w1": (6, 6), "w2": (6, 3)})
    structure = analyse(dense.clone())
    RemoveBlocks(residual_blocks(structure))(structure.model)
    Tidy()(structure.model)
    recovered = recover(dense, structure.model, {}, {"x": correlated(200, (6,))}, batch=20)
    assert [s.layer for s in recovered.steps] == ["w2"]
    assert recovered.after < 1e-3 * recovered.before


def test_layers_side_by_side_share_a_stage() -> None:
    model = network(
        """<ir_version: 8, opset_import: ["": 13]>
        g (float[N, 4] x) => (float[N, 2] y) {
          a = MatMul(x, q)
          b = MatMul(x, k)
          c = Add(a, b)
          y = MatMul(c, o)
        }""",
        {"q": (4, 4), "k": (4, 4), "o": (4, 2)},
    )
    assert [[x.name for x in stage] for stage in stages(model, linear_layers(model)[0])] == [["q", "k"], ["o"]]


def test_what_is_not_reconstructed_is_said() -> None:
    model = network(
        """<ir_version: 8, opset_import: ["": 13]>
        g (float[N, 4, 5, 5] x) => (float[N, 3, 7, 7] y) {
          y = ConvTranspose(x, w)
        }""",
        {"w": (4, 3, 3, 3)},
    )
    recovered = recover(model, model.clone(), {}, {"x": np.zeros((8, 4, 5, 5), np.float32)}, batch=2)
    assert "ConvTranspose" in recovered.skipped["y"]
    assert not recovered.steps


def test_wrong_settings_are_refused() -> None:
    model = network(MLP, MLP_SHAPES)
    with pytest.raises(RecipeError, match="there is no recovery method"):
        recover(model, model.clone(), {}, {"x": np.zeros((8, 6), np.float32)}, methods=("magic",))
    with pytest.raises(DataError, match="two batches"):
        recover(model, model.clone(), {}, {"x": np.zeros((1, 6), np.float32)})
