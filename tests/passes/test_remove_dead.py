"""Dead units go, all of them, and the outputs stay (Han et al. 2015, section 3.5)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from small_models import array, conv_net, graph, random, set_array, two_layers

from onnxprune import runtime
from onnxprune.passes import Normalise, RemoveDeadUnits, Tidy


def remove_dead(model: ir.Model) -> tuple[RemoveDeadUnits, float]:
    original = model.clone()
    Normalise()(model)
    done = RemoveDeadUnits()
    done(model)
    Tidy()(model)
    feeds = runtime.working_inputs(original, count=2)
    return done, max(runtime.compare(original, model, f).max_rel for f in feeds)


def zero(model: ir.Model, name: str, place: object) -> None:
    content = array(model, name)
    content[place] = 0
    set_array(model, name, content)


def test_a_neuron_that_nothing_reads_goes() -> None:
    model = two_layers()
    zero(model, "w2", [1, 5, 7])
    done, difference = remove_dead(model)
    assert done.removed == 3
    assert array(model, "w1").shape == (8, 29)
    assert difference == 0
    np.testing.assert_array_equal(done.kept["b1"][0], np.delete(np.arange(32), [1, 5, 7]))


def test_a_constant_neuron_is_folded_into_the_next_bias() -> None:
    model = two_layers()
    zero(model, "w1", (slice(None), [0, 2]))  # their biases stay: relu(b) is a constant for every input
    done, difference = remove_dead(model)
    assert done.removed == 2
    assert difference < 1e-6


def test_channels_behind_batchnorm_are_folded() -> None:
    model = conv_net()
    zero(model, "w1", slice(0, 10))
    done, difference = remove_dead(model)
    assert done.removed == 10
    assert array(model, "w2").shape == (32, 22, 3, 3)
    assert difference < 1e-6


def test_a_constant_that_is_not_zero_stays_in_front_of_padding_and_is_named() -> None:
    model = conv_net(pads="[1,1,1,1]")
    shift, mean, scale, var = (array(model, n) for n in ("shift", "mean", "scale", "var"))
    zero(model, "w1", slice(0, 10))
    constant = np.maximum(shift - mean * scale / np.sqrt(var + 1e-5), 0)[:10]
    done, difference = remove_dead(model)
    assert done.removed == int((constant == 0).sum())
    assert done.left and "padding" in done.left[0]
    assert difference < 1e-6


def test_death_spreads_to_the_fixpoint() -> None:
    weights = {"w1": random(4, 8), "w2": random(8, 8, seed=1), "w3": random(8, 8, seed=2), "w4": random(8, 2)}
    weights["w4"][:4] = 0  # nobody reads half of the last layer,
    weights["w3"][:4, 4:] = 0  # which alone read half of the one before,
    weights["w2"][:4, 4:] = 0  # which alone read half of the first
    model = graph(
        "agraph (float[N,4] x) => (float[N,2] y) {"
        "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) e = MatMul(d, w3) f = Relu(e) y = MatMul(f, w4) }",
        weights,
    )
    done, difference = remove_dead(model)
    assert done.removed == 12
    assert difference < 1e-6


def test_a_bias_made_by_a_fold_is_cut_with_its_convolution() -> None:
    model = conv_net()
    zero(model, "w1", slice(0, 10))  # constant: folded into a bias that the second convolution does not have yet,
    zero(model, "w3", (slice(None), slice(0, 5)))  # five channels of which nothing reads
    done, difference = remove_dead(model)
    assert done.removed == 15
    assert difference < 1e-6


def test_an_axis_never_becomes_empty() -> None:
    model = two_layers(4)
    zero(model, "w2", slice(None))
    done, difference = remove_dead(model)
    assert done.removed == 3
    assert difference == 0


def test_a_unit_that_a_sum_reads_stays() -> None:
    model = graph(
        "agraph (float[N,4] x) => (float[N,1] y, float[N,2] z) {"
        "a = MatMul(x, w1) b = Sigmoid(a) y = ReduceMean <axes = [1]> (b) z = MatMul(b, w2) }",
        {"w1": random(4, 6), "w2": np.zeros((6, 2), np.float32)},
    )
    done, difference = remove_dead(model)
    assert done.removed == 0
    assert difference == 0
