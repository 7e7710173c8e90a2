"""Alignment by gradients: what it gains, what it leaves alone, and that nothing gets worse on held-back inputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxprune import model_io
from onnxprune.data.batches import held_back
from onnxprune.errors import RecipeError
from onnxprune.pipeline.run import prune
from onnxprune.recovery import Recovery, recover
from onnxprune.recovery.alignment import Alignment, Tried
from onnxprune.recovery.descent import Walk, descend, rate_by_range_test
from onnxprune.recovery.pictures import augmentation
from onnxprune.recovery.places import compared_at
from onnxprune.recovery.run import HELD_EVERY
from onnxprune.runtime.session import make_session, run

from .models_to_recover import constant, cut, network, residual_stack, zeroed

X = {"x": np.random.default_rng(3).standard_normal((320, 8)).astype(np.float32)}


def dense(scale: float = 1.0) -> ir.Model:
    """Two residual blocks; where the last weights are scaled down the outputs are no scores of classes."""
    model = residual_stack(outputs=4)
    model.graph.initializers["w5"].const_value = ir.Tensor(
        (scale * constant(model, "w5")).astype(np.float32), name="w5"
    )
    return model


def aligned(
    pruned: ir.Model, kept: object, methods: tuple[str, ...] = ("align",), seed: int = 0, scale: float = 1.0
) -> Recovery:
    """Recover a pruned stack in place."""
    return recover(dense(scale), pruned, kept, X, methods=methods, seed=seed)  # type: ignore[arg-type]


def test_it_goes_on_where_least_squares_ends() -> None:
    fitted, kept = cut(dense(0.01), "w1", 0, [0, 3, 5, 9, 11, 14])
    trained = fitted.clone()
    closed = aligned(fitted, kept, ("least-squares",), scale=0.01)
    done = aligned(trained, kept, scale=0.01)
    assert done.after is not None and closed.after is not None
    assert done.after < 0.98 * closed.after
    assert {step.method for step in done.steps} == {"least-squares", "align"}  # the closed form is its start


def test_what_is_held_back_was_not_seen_by_the_fits_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the start looks better on it than it is, and good states are refused."""
    pruned, kept = cut(dense(), "w1", 0, [0, 3, 5, 9])
    fitted = pruned.clone()
    used, held = held_back(dense(), X, HELD_EVERY)
    assert not set(map(bytes, used["x"])) & set(map(bytes, held["x"]))
    recover(dense(), fitted, kept, used, methods=("least-squares",))
    starts: list[ir.Model] = []

    def run_nothing(self: Alignment) -> Iterator[Tried]:
        starts.append(self.pruned.clone())
        return iter(())

    monkeypatch.setattr(Alignment, "run", run_nothing)
    recover(dense(), pruned, kept, X, methods=("least-squares", "align"))
    for name in ("w2", "w3", "w4"):
        assert np.array_equal(constant(starts[0], name), constant(fitted, name))
    everything = cut(dense(), "w1", 0, [0, 3, 5, 9])[0]
    recover(dense(), everything, kept, X, methods=("least-squares",))
    assert np.array_equal(constant(pruned, "w2"), constant(everything, "w2"))  # nothing was kept: all inputs again


def test_where_channels_of_the_cut_went_those_that_are_left_are_compared() -> None:
    pruned, kept = cut(dense(0.01), "w0", 0, [1, 4])
    (place,) = compared_at(dense(0.01), pruned, kept, ["u"], X)
    assert place.rows is not None and place.rows.tolist() == [0, 2, 3, 5]
    assert place.left(np.arange(6.0)[None]).tolist() == [[0, 2, 3, 5]]
    closed = aligned(pruned.clone(), kept, ("least-squares",), scale=0.01)
    done = aligned(pruned, kept, scale=0.01)
    assert done.after is not None and closed.after is not None and done.after < closed.after


def test_single_weights_that_are_zero_stay_zero() -> None:
    mask = np.random.default_rng(0).random((16, 6)) < 0.5
    pruned = zeroed(dense(0.01), {"w1": mask})
    done = aligned(pruned, {}, scale=0.01)
    assert any(step.applied for step in done.steps if step.method == "align")
    assert not constant(pruned, "w1")[~mask].any()
    assert constant(pruned, "w1")[mask].all()


def test_the_same_seed_gives_the_same_bits() -> None:
    numbers = []
    for seed in (0, 0, 1):
        pruned, kept = cut(dense(), "w1", 0, [0, 3, 5, 9])
        aligned(pruned, kept, seed=seed)
        numbers.append(np.concatenate([constant(pruned, name).ravel() for name in ("w1", "w2", "w4")]))
    assert np.array_equal(numbers[0], numbers[1])
    assert not np.array_equal(numbers[0], numbers[2])


def test_a_model_that_lost_nothing_stays_as_it_is() -> None:
    pruned = dense()
    done = aligned(pruned, {})
    assert not [step for step in done.steps if step.method == "align" and step.applied]
    assert np.array_equal(constant(pruned, "w3"), constant(dense(), "w3"))


def test_what_makes_held_back_inputs_worse_is_put_back() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    before, after, _ = descend(
        [weight], lambda step: weight.sum(), lambda: float((weight.detach() - 1).abs().sum()), 20, 0.1
    )
    assert before == after == 0
    assert torch.equal(weight, torch.ones(2, 2))


def test_a_rate_at_which_nothing_gets_better_is_lowered() -> None:
    """A minimum so near that the first rate only jumps over it."""
    weight = torch.nn.Parameter(torch.full((1, 1), 1.0002))

    def loss(_: int) -> torch.Tensor:
        return (weight - 1).abs().sum()

    before, after, rate = descend([weight], loss, lambda: float(loss(0).detach()), 30, 0.5)
    assert rate < 0.5 and after < before


def test_a_rate_that_makes_things_much_worse_is_not_tried_for_long() -> None:
    weight = torch.nn.Parameter(torch.ones(1, 1))
    taken: list[int] = []

    def loss(step: int) -> torch.Tensor:
        taken.append(step)
        return weight.sum()

    descend([weight], loss, lambda: 1.0 if not taken else 2.0, 60, 0.01)
    assert taken[:6] == [*range(5), 0]  # after the first look anew, not after a sixth of the steps


def test_all_tries_share_the_steps() -> None:
    weight = torch.nn.Parameter(torch.ones(1, 1))
    taken: list[int] = []

    def loss(step: int) -> torch.Tensor:
        taken.append(step)
        return weight.sum()

    descend([weight], loss, lambda: 1.0, 60, 0.01)
    assert taken[:11] == [*range(10), 0]  # a sixth of the steps brought nothing
    assert len(taken) <= 60


def test_steps_are_relative_to_each_row() -> None:
    weight = torch.nn.Parameter(torch.tensor([[100.0, -100.0], [0.01, 0.0]]))
    walk = Walk([weight], 0.1, 10)
    before = weight.detach().clone()
    walk((weight * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum())
    change = (weight.detach() - before) / before.square().mean(1, keepdim=True).sqrt()
    assert change[0].tolist() == pytest.approx([float(change[0, 0])] * 2, rel=1e-4)
    assert weight[1, 1] == 0  # what was pruned stays
    assert 0 < -float(change[0, 0]) <= 0.1


def test_the_range_test_shuns_rates_that_blow_up_and_puts_everything_back() -> None:
    weight = torch.nn.Parameter(torch.full((1, 1), 1.0))
    rate = rate_by_range_test([weight], lambda step: (weight - 1).square().sum() * 1e6, 6)
    assert rate <= 1e-3
    assert float(weight.detach()) == 1.0


PICTURES = """<ir_version: 8, opset_import: ["": 13]>
pictures (float[N, 3, 16, 16] x) => (float[N, 4] y) {
  a = Conv<pads = [1, 1, 1, 1]>(x, w1) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm<transB = 1>(f, w2)
}"""
SIDES = """<ir_version: 8, opset_import: ["": 13]>
sides (float[N, 3, 16, 16] x) => (float[N, 4] y) { f = Flatten(x) y = Gemm<transB = 1>(f, w) }"""


def test_pictures_are_cropped_and_mirrored_only_where_the_model_does_not_mind() -> None:
    flat = {"x": np.random.default_rng(0).standard_normal((12, 3, 16, 16)).astype(np.float32)}
    flat["x"] += np.random.default_rng(1).standard_normal((12, 3, 1, 1)).astype(np.float32)
    augment = augmentation(network(PICTURES, {"w1": (8, 3, 3, 3), "w2": (4, 8)}), flat)
    assert augment is not None
    drawn = augment(flat, np.random.default_rng(0))["x"]
    assert drawn.shape == flat["x"].shape and not np.array_equal(drawn, flat["x"])
    flat["x"][..., :8] += 10 * np.random.default_rng(2).standard_normal((12, 3, 1, 1)).astype(np.float32)
    sides = network(SIDES, {"w": (4, 768)})
    augment = augmentation(sides, flat)  # it tells left from right, and does not mind a small warp
    assert augment is not None
    drawn = augment(flat, np.random.default_rng(0))["x"]
    for number in np.flatnonzero(np.abs(flat["x"]).max((1, 2, 3)) > 20):
        left, right = (np.abs(drawn[number][..., half]).mean() for half in (slice(0, 5), slice(11, 16)))
        assert left > right  # no mirror images
    noise = {"x": np.random.default_rng(3).standard_normal((12, 3, 16, 16)).astype(np.float32)}
    assert augmentation(sides, noise) is None  # each pixel counts
    assert augmentation(dense(), {"x": X["x"][:8]}) is None  # no pictures


DIGITS = Path(__file__).parents[2] / "models"


def test_effort_is_a_setting_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_io.load_any(DIGITS / "digits_mlp.onnx")
    name = str(model.graph.inputs[0].name)

    inputs = {name: np.load(DIGITS / "digits_train.npz")["image"][:256].astype(np.float32)}
    told: list[str] = []

    def run(**settings: object) -> list[str]:
        done = prune(DIGITS / "digits_mlp.onnx", structure="channels", sparsity=0.5, calibration=inputs, latency=False,
                     verification=False, progress=told.append, **settings)  # type: ignore[arg-type]  # fmt: skip
        assert done.recovered is not None
        return list(done.recovered["methods"])

    assert run() == ["least-squares"]
    assert not any("minutes" in stage for stage in told)
    assert run(effort="medium") == ["least-squares", "align"]
    assert any("minutes" in stage for stage in told)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else real(name, *a))
    assert run() == ["least-squares"]  # nothing of it needs PyTorch
    with pytest.raises(RecipeError, match=r"--effort high needs PyTorch, which is not installed"):
        run(effort="high")
    with pytest.raises(RecipeError, match=r"--recover align needs PyTorch"):
        run(recover="align")


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
@pytest.mark.parametrize(
    "name", ["digits_mlp", pytest.param("digits_resnet", marks=pytest.mark.zoo),
             pytest.param("digits_transformer", marks=pytest.mark.zoo)]
)  # fmt: skip
def test_inputs_that_nothing_saw_are_not_farther_from_the_dense_model(name: str, sparsity: float) -> None:
    path = DIGITS / f"{name}.onnx"
    dense = model_io.load_any(path)
    read = str(dense.graph.inputs[0].name)
    seen = {read: np.load(DIGITS / "digits_train.npz")["image"][:512].astype(np.float32)}
    unseen = {read: np.load(DIGITS / "digits_mlp.npz")["image"].astype(np.float32)}

    def scores(model: ir.Model) -> np.ndarray:
        (output,) = run(make_session(model), unseen).values()
        return np.asarray(output, np.float64)

    def error(effort: str) -> float:
        done = prune(path, structure="channels", sparsity=sparsity, calibration=seen, latency=False,
                     verification=False, effort=effort)  # type: ignore[arg-type]  # fmt: skip
        return float(np.square(scores(done.model) - scores(dense)).mean())

    assert error("medium") < 1.05 * error("low")
