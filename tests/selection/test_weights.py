"""Exactly the asked share of single weights goes, the least salient first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import conv_net, set_array, two_layers

from onnxprune.pipeline.prepare import prepare
from onnxprune.scoring import find_criterion, prunable_weights
from onnxprune.scoring.acting import acting_numbers
from onnxprune.selection.weights import least_of_each, relative_to_layers, select_weights


@given(sparsity=st.floats(0, 1))
def test_the_share_is_exact(sparsity: float) -> None:
    weights = prunable_weights(prepare(conv_net(8)))
    masks = select_weights(weights, find_criterion("magnitude"), sparsity)
    gone = sum(int((~m).sum()) for m in masks.values())
    total = sum(w.size for w in weights)
    assert gone == pytest.approx(sparsity * total, abs=1)


def test_global_magnitude_is_one_threshold() -> None:
    weights = prunable_weights(prepare(conv_net(8)))
    masks = select_weights(weights, find_criterion("magnitude"), 0.6)
    kept = min(np.abs(acting_numbers(w)[masks[w.value]]).min() for w in weights if masks[w.value].any())
    gone = max(np.abs(acting_numbers(w)[~masks[w.value]]).max() for w in weights if (~masks[w.value]).any())
    assert gone <= kept


def test_ties_are_broken_in_order_and_zeros_go_first() -> None:
    model = two_layers(4)
    set_array(model, "w1", np.ones((8, 4), np.float32))
    set_array(model, "w2", np.zeros((4, 4), np.float32))
    weights = prunable_weights(prepare(model))
    chosen = select_weights(weights, find_criterion("magnitude"), 0.5)
    masks = {w.name: chosen[w.value] for w in weights}
    assert not masks["w2"].any()
    assert masks["w1"].reshape(-1).tolist() == [False] * 8 + [True] * 24


def test_the_seed_decides_what_chance_takes() -> None:
    weights = prunable_weights(prepare(two_layers()))
    one, same, other = (select_weights(weights, find_criterion("random"), 0.5, seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(one[v], same[v]) for v in one)
    assert not all(np.array_equal(one[v], other[v]) for v in one)


def test_each_row_loses_its_own_least_and_what_is_left_over_goes_by_saliency() -> None:
    """Five of twelve in three rows: one each, and two more from the rows whose next is the least."""
    saliency = np.array([[4, 3, 2, 1], [40, 30, 20, 10], [0.4, 0.3, 0.2, 0.1]], np.float32)
    stays = least_of_each(saliency, 5, 0)
    assert stays.tolist() == [[True, True, False, False], [True, True, True, False], [True, True, False, False]]
    assert (least_of_each(saliency.T, 5, 1) == stays.T).all()
    assert least_of_each(saliency, 0, 0).all() and not least_of_each(saliency, 12, 0).any()


def test_a_layer_ten_times_as_large_loses_as_much_where_saliencies_are_relative_to_the_layer() -> None:
    model = two_layers(32)
    weights = prunable_weights(prepare(model))
    relative = relative_to_layers(find_criterion("magnitude"))
    before = [int(m.sum()) for m in select_weights(weights, relative, 0.5).values()]
    set_array(model, "w1", 10 * model.graph.initializers["w1"].const_value.numpy())
    after = [int(m.sum()) for m in select_weights(prunable_weights(prepare(model)), relative, 0.5).values()]
    assert before == after


def test_scores_that_tell_the_loss_of_the_model_are_compared_as_they_are() -> None:
    assert relative_to_layers(find_criterion("snip")) is find_criterion("snip")
