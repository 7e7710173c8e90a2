"""The end of a network that is trained as a whole: where it begins, what it is trained on, what is fitted behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxprune.recovery import recover, tail
from onnxprune.recovery.alignment import LEAST_STEPS, Alignment, steps_within
from onnxprune.recovery.outputs import Outputs
from onnxprune.recovery.pictures import Augment, augmentation
from onnxprune.recovery.places import compared_at
from onnxprune.recovery.reconstruct import State, as_before_pruning
from onnxprune.recovery.tail import Pruning, Tail, first_trained
from onnxprune.runtime.stream.cuts import common_blocks
from onnxprune.runtime.stream.gather import Batches
from onnxprune.structure.rewrite import Kept
from onnxprune.training.likeness import distance

from .models_to_recover import constant, cut, network, residual_stack

X = np.random.default_rng(3).standard_normal((320, 8)).astype(np.float32)
PICTURES = """<ir_version: 8, opset_import: ["": 13]>
pictures (float[N, 3, 16, 16] x) => (float[N, 12] y) {
  a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) r = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(r, w2, b2) q = Relu(c)
  p = GlobalAveragePool(q) f = Flatten(p) y = Gemm<transB = 1>(f, w3, b3)
}"""
PICTURE_SHAPES = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (12, 8), "b3": (12,)}


def pair(dense: ir.Model, pruned: ir.Model, kept: Kept, x: np.ndarray) -> Pruning:
    """The two networks with batches of 16, the last of them held back."""
    samples = Batches.of(dense, {"x": x}, 16, least=4)
    blocks = common_blocks(dense, pruned, samples.sizes(dense))
    places = [compared_at(dense, pruned, kept, sorted(b.live), samples.feeds[0]) for b in blocks[1][:-1]]
    numbers = range(len(samples.feeds))
    outputs = Outputs.of(dense, samples.feeds, numbers[:-1], numbers[-1:])
    return Pruning(dense, pruned, blocks, [*places, []], samples, numbers[:-1], numbers[-1:], outputs)


def test_blocks_before_the_first_that_lost_something_are_not_trained() -> None:
    dense = residual_stack(outputs=12)
    first, kept_first = cut(dense.clone(), "w1", 0, [0, 3, 5])
    second, kept_second = cut(dense.clone(), "w3", 0, [0, 3, 5])
    assert first_trained(pair(dense, first, kept_first, X)) == 1  # w0 lost nothing
    nets = pair(dense, second, kept_second, X)
    assert first_trained(nets) == 2
    end = Tail(nets, None, 4, 0)
    assert {p.shape for p in end.parameters} == {p.shape for n in ("w3", "b3", "w4", "b4", "w5", "b5")
                                                 for p in [constant(second, n)]}  # fmt: skip
    assert end.draws == 1  # no pictures: drawn as they are


def test_a_network_that_works_longer_takes_fewer_steps() -> None:
    dense = residual_stack(outputs=12)
    pruned, kept = cut(dense.clone(), "w3", 0, [0, 3, 5])
    end = Tail(pair(dense, pruned, kept, X), None, 1, 0)
    sizes = [constant(pruned, name).size for name in ("w3", "w4", "w5")]
    assert end.multiply_adds == 16 * sum(sizes)
    assert [steps_within(work, 1000, end.multiply_adds) for work in (1e3, 500 * end.multiply_adds, 1e15)] == [
        LEAST_STEPS, 500, 1000
    ]  # fmt: skip


def test_the_end_reads_what_the_whole_network_gives() -> None:
    dense = residual_stack(outputs=12)
    pruned, kept = cut(dense.clone(), "w3", 0, [0, 3, 5])
    nets = pair(dense, pruned, kept, X)
    whole = first_of(dense, pruned, kept)
    for shown, scores in ((0.89, 0.0), (0.9, whole.scores)):  # scores count where the classes are shown
        end = Tail(replace(nets, outputs=Outputs({"y": "logits"}, shown)), None, 1, 0)
        assert list(end.draw()) == [0]
        assert float(end.loss_at(0).detach()) == pytest.approx(whole.values + scores, rel=1e-4)
        assert len(end.closed) == (not scores)


class First(NamedTuple):
    """The loss of the batch that comes first, from both whole networks."""

    values: float
    scores: float


def first_of(dense: ir.Model, pruned: ir.Model, kept: Kept) -> First:
    """The distance of the values at the one cut, and of the scores of classes."""
    nets = pair(dense, pruned, kept, X)
    number = int(np.random.default_rng((0, 0)).permutation(len(nets.train))[0])
    feed = nets.samples.feeds[nets.train[number]]
    (place,) = nets.places[2]
    theirs, ours = (tail.Program(m, list(m.graph), ["u", "y"], feed)(feed) for m in (dense, pruned))
    values = float(np.square(theirs["u"] - ours["u"]).mean() / place.variance)
    mine, wanted = (torch.from_numpy(x["y"]) for x in (ours, theirs))
    return First(values, float(distance("logits", mine, wanted, temperature=3)))


def test_classes_are_shown_where_others_have_the_highest_score_there_too() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]>
    g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Identity(x) z = Mul(x, factor) }"""
    dense = network(text, {"factor": (1,)})
    feeds = [{"x": 20 * np.eye(4, dtype=np.float32)[classes]} for classes in ([0, 1], [1, 1], [1, 2], [0, 3])]
    dense.graph.initializers["factor"].const_value = ir.Tensor(np.ones(1, np.float32), name="factor")
    assert Outputs.of(dense, feeds, [0, 1], [2, 3]) == Outputs({"y": "logits", "z": "logits"}, 0.5)
    dense.graph.initializers["factor"].const_value = ir.Tensor(-np.ones(1, np.float32), name="factor")
    assert Outputs.of(dense, feeds, [0, 1], [2, 3]).shown == 0.5  # the least of both
    assert Outputs.of(dense, [{"x": feed["x"] / 100} for feed in feeds], [0, 1], [2, 3]).shown == 1  # no classes


def test_scores_come_nearer_where_they_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = with_small_scores()
    start, kept = cut(dense, "w3", 0, [0, 3, 5])
    held = {"x": np.random.default_rng(9).standard_normal((256, 8)).astype(np.float32)}

    def far() -> float:
        done = start.clone()
        recover(dense, done, kept, {"x": X}, methods=("align",))
        theirs, ours = (tail.Program(m, list(m.graph), ["y"], held)(held)["y"] for m in (dense, done))
        return float(distance("logits", torch.from_numpy(ours), torch.from_numpy(theirs)))

    trained = far()
    monkeypatch.setattr(tail, "SHOWN", 2.0)
    assert trained < 0.9 * far()


def of_pictures() -> tuple[Pruning, Augment]:
    """A network that sees pictures, before and after a cut, and what draws others."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 3, 16, 16)) + rng.standard_normal((64, 3, 1, 1))).astype(np.float32)
    dense = network(PICTURES, PICTURE_SHAPES)
    pruned, kept = cut(dense.clone(), "w1", 0, [0, 3])
    nets = pair(dense, pruned, kept, x)
    augment = augmentation(dense, nets.samples.feeds[0])
    assert augment is not None
    return nets, augment


def test_pictures_are_drawn_as_often_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    nets, augment = of_pictures()
    end = Tail(nets, augment, 3, 0)
    assert list(end.draw()) == [0, 1, 2]
    losses = {round(float(end.loss_at(step).detach()), 6) for step in range(3 * len(nets.train))}
    assert len(losses) == 3 * len(nets.train)  # each batch, drawn anew each time
    monkeypatch.setattr(tail, "ROOM", 1)
    assert Tail(nets, augment, 3, 0).draws == 1


def test_pictures_are_stored_in_16_bits_where_there_is_too_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    nets, augment = of_pictures()
    monkeypatch.setattr(tail, "SMALLEST", 0)
    losses = []
    whole = Tail(nets, augment, 3, 0)
    monkeypatch.setattr(tail, "ROOM", int(0.6 * 3 * whole._bytes_of_a_draw()))
    for end in (whole, Tail(nets, augment, 3, 0)):
        assert list(end.draw()) == [0, 1, 2]
        losses.append(float(end.loss_at(4).detach()))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_values_that_float16_cannot_hold_stay_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "SMALLEST", 0)
    values = {"fits": np.array([1.0, 1e-3]), "large": np.array([1e5, 1.0]), "tiny": np.array([1e-7, 3e-7])}
    short = tail.in_16_bits({name: array.astype(np.float32) for name, array in values.items()})
    assert {name: array.dtype.name for name, array in short.items()} == {
        "fits": "float16", "large": "float32", "tiny": "float32",
    }  # fmt: skip


def test_layers_get_back_the_dense_numbers_that_are_left() -> None:
    """In the pruned network's coordinates: behind the layer its BatchNormalization was trained to twice the scale."""
    text = """<ir_version: 8, opset_import: ["": 13]>
    g (float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y) {
      h = Conv(x, w1) r = Relu(h) c = Conv(r, w2, b2) y = BatchNormalization<epsilon = 0.0>(c, scale, shift, mean, var)
    }"""
    shapes = {"w1": (4, 2, 1, 1), "w2": (2, 4, 1, 1), "b2": (2,)} | dict.fromkeys(
        ("scale", "shift", "mean", "var"), (2,)
    )
    dense = network(text, shapes)
    pruned, kept = cut(dense, "w1", 0, [1])
    weights, bias = constant(pruned, "w2").copy(), constant(pruned, "b2").copy()
    scale = constant(pruned, "scale")
    pruned.graph.initializers["scale"].const_value = ir.Tensor((2 * scale).astype(np.float32), name="scale")
    pruned.graph.initializers["w2"].const_value = ir.Tensor(np.zeros_like(weights, np.float32), name="w2")
    x = {"x": np.random.default_rng(1).standard_normal((32, 2, 3, 3)).astype(np.float32)}
    state = State(dense, pruned, kept, Batches.of(dense, x, 4), 256, None, lambda _: None)
    as_before_pruning(state, [n for n in pruned.graph if "w2" in [v.name for v in n.inputs if v]])
    np.testing.assert_allclose(constant(pruned, "w2"), weights / 2, rtol=1e-5)
    mean = constant(dense, "mean")
    np.testing.assert_allclose(constant(pruned, "b2"), (bias - mean) / 2 + mean, rtol=1e-4)


def test_what_gives_scores_of_classes_is_fitted_anew_to_the_trained_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "SHOWN", 2.0)
    x = {"x": X}
    dense = with_small_scores()
    start, kept = cut(dense, "w3", 0, list(range(8)))
    done, without = start.clone(), start.clone()
    steps = recover(dense, done, kept, x, methods=("align",)).steps
    assert any(step.layer == "the whole" and step.applied for step in steps)
    assert not np.array_equal(constant(done, "w5"), constant(dense, "w5"))
    monkeypatch.setattr(Alignment, "_fit", lambda *_: None)
    recover(dense, without, kept, x, methods=("align",))
    held = {"x": np.random.default_rng(9).standard_normal((256, 8)).astype(np.float32)}
    assert gap(dense, done, held) < gap(dense, without, held)


def with_small_scores() -> ir.Model:
    """A network whose scores of classes are of the size that trained ones have."""
    dense = residual_stack(outputs=12)
    dense.graph.initializers["w5"].const_value = ir.Tensor((0.1 * constant(dense, "w5")).astype(np.float32), name="w5")
    return dense


def gap(dense: ir.Model, pruned: ir.Model, x: dict[str, np.ndarray]) -> float:
    """Mean squared difference of the outputs."""
    theirs, ours = (tail.Program(m, list(m.graph), ["y"], x)(x)["y"] for m in (dense, pruned))
    return float(np.square(theirs - ours).mean())


def test_nothing_stays_where_the_outputs_of_held_back_inputs_get_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = residual_stack(outputs=12)
    start, kept = cut(dense, "w3", 0, [0, 3, 5])
    closed, done = start.clone(), start.clone()
    recover(dense, closed, kept, {"x": X}, methods=("least-squares",))
    worse = iter(range(9))
    monkeypatch.setattr(Tail, "held_outputs", lambda _: next(worse))
    steps = recover(dense, done, kept, {"x": X}, methods=("align",)).steps
    assert not any(step.applied for step in steps if step.method == "align")
    for name in dense.graph.initializers:
        assert np.array_equal(constant(done, name), constant(closed, name))
