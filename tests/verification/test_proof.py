"""What a comparison of removed and masked proves: only outputs that say something count."""

from __future__ import annotations

import weakref

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from small_models import graph, random

import onnxprune
from onnxprune import runtime
from onnxprune.errors import ModelError, VerificationError
from onnxprune.pipeline.run import prune
from onnxprune.runtime import in_blocks, inputs, session
from onnxprune.verification.change import change_of_output
from onnxprune.verification.comparable import comparable, seeded
from onnxprune.verification.proof import prove

WEIGHTS = {"w1": random(8, 32), "w2": random(32, 4)}


def network(end: str, result: str = "float[N,4] y", **constants: np.ndarray) -> ir.Model:
    """x -> 32 neurons -> z [N, 4] -> whatever the end makes of it."""
    text = f"agraph (float[N,8] x) => ({result}) {{ h = MatMul(x, w1) r = Relu(h) z = MatMul(r, w2) {end} }}"
    return graph(text, {**WEIGHTS, **constants})


def zeroed(model: ir.Model, name: str, unit: int) -> ir.Model:
    copy = model.clone()
    value = copy.graph.initializers[name]
    array = value.const_value.numpy().copy()
    array[:, unit] = 0
    value.const_value = ir.tensor(array, name=name)
    return copy


LOW, HALF = np.float32(-1e9), np.float32(1e9)

SILENT = {
    "NaN": (network("m = Sub(z, big) y = Log(m)", big=HALF), "is NaN"),
    "constant": (network("m = Mul(z, zero) y = Add(m, one)", zero=np.float32(0), one=np.float32(1)), "is constant"),
    "empty": (network("g = Greater(z, big) y = NonZero(g)", "int64[2,M] y", big=HALF), "is empty"),
    "a threshold": (network("g = Greater(z, big) y = Cast <to = 1> (g)", big=HALF), "is constant"),
}


@pytest.mark.parametrize("name", SILENT)
def test_outputs_that_say_nothing_are_compared_in_front_of_the_end(name: str) -> None:
    model, why = SILENT[name]
    masked = zeroed(model, "w1", 3)
    proof = prove(model, masked, masked.clone())
    assert not proof.unproved and "y" not in proof.compared
    assert proof.silent is not None and why in proof.silent["y"] and why in proof.note
    with pytest.raises(VerificationError, match="differs"):  # another unit, which only the inner values show
        prove(model, masked, zeroed(model, "w1", 4)).unproved or pytest.fail("not seen")


def test_nothing_is_proved_where_nothing_reacts() -> None:
    model = graph("agraph (float[N,8] x) => (float[N,8] y) { m = Mul(x, zero) y = Log(m) }", {"zero": np.float32(0)})
    proof = prove(model, model, model)
    assert "is " in proof.unproved and proof.note.startswith("nothing was proved")


def test_an_output_that_reacts_is_enough_and_the_others_are_named() -> None:
    model = network("m = Sub(z, big) bad = Log(m) y = Identity(z)", "float[N,4] y, float[N,4] bad", big=HALF)
    proof = prove(model, zeroed(model, "w1", 3), zeroed(model, "w1", 3))
    assert proof.compared == ("y",) and not proof.unproved
    assert proof.note == "output 'bad' is NaN or infinite throughout: it was left out of the proof"


def test_a_mask_that_lets_nothing_through_is_turned_round() -> None:
    """True means left out, as in PyTorch: a mask of ones gives NaN."""
    text = (
        "agraph (float[N,8] x, bool[N,8] mask) => (float[N,4] y) <float low = {-inf}> {"
        " s = Where(mask, low, x) p = Softmax <axis = -1> (s) h = MatMul(p, w1) r = Relu(h) y = MatMul(r, w2) }"
    )
    model = graph(text.replace("<float low = {-inf}> ", ""), {**WEIGHTS, "low": np.float32(-np.inf)})
    result = onnxprune.prune(model, sparsity=0.5, structure="channels", latency=False)
    assert result.verdict is not None and not result.verdict.unproved and result.verdict.output_change > 1e-3


def test_random_operators_are_compared_under_one_seed() -> None:
    model = network("n = RandomNormalLike(z) y = Add(z, n)")
    assert prove(model, zeroed(model, "w1", 3), zeroed(model, "w1", 3)).difference == 0
    assert seeded(model) is not model and seeded(network("y = Identity(z)")) is not None


def test_inputs_that_were_tried_before_do_not_shift_random_numbers() -> None:
    """Numbers without a sign come second, in a session that has drawn by then: a root gave NaN before."""
    text = "n = RandomNormalLike(z) y = Add(z, n) least = ReduceMin <keepdims = 0> (x) root = Sqrt(least)"
    model = network(text, "float[N,4] y, float root")
    proof = prove(model, zeroed(model, "w1", 3), zeroed(model, "w1", 3))
    assert proof.difference == 0 and not proof.silent


class Sessions:
    """Counts sessions: how many were made, how many of them at most lived at once, and how many runs there were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = self.most = self.runs = 0
        alive = weakref.WeakSet[ort.InferenceSession]()
        make, run = session.make_session, session.run

        def spied(model: ir.Model, **settings: object) -> ort.InferenceSession:
            new = make(model, **settings)  # type: ignore[arg-type]
            alive.add(new)
            self.made, self.most = self.made + 1, max(self.most, len(alive))
            return new

        def counted(*arguments: object, **settings: object) -> object:
            self.runs += 1
            return run(*arguments, **settings)  # type: ignore[arg-type]

        monkeypatch.setattr(in_blocks, "make_session", spied)
        for module in (in_blocks, inputs, runtime):
            monkeypatch.setattr(module, "run", counted)


def test_a_proof_holds_one_session_at_a_time_and_runs_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions, model = Sessions(monkeypatch), network("y = Identity(z)")
    prove(model, zeroed(model, "w1", 3), zeroed(model, "w1", 3))
    assert (sessions.made, sessions.most) == (3, 1)
    assert sessions.runs == 6  # of the twin, the original and the pruned model, each at two batch sizes


def test_where_nothing_is_proved_one_session_is_held_and_no_inputs_are_tried_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A head that is zero, as that of a network before its training: in front of it lie values that lose a unit."""
    sessions = Sessions(monkeypatch)
    text = "agraph (float[N,8] x) => (float[N,4] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"
    model = graph(text, {**WEIGHTS, "w2": np.zeros((32, 4), np.float32)})
    proof = prove(model, zeroed(model, "w1", 3), zeroed(model, "w1", 3))
    assert "is constant" in proof.unproved
    sets = 1 + 2 + 2  # the best, other numbers, and those without a sign and large ones: there is no mask to turn round
    assert (sessions.made, sessions.most, sessions.runs) == (4 * sets, 1, 8 * sets)


def test_kernels_that_round_activations_do_not_jump() -> None:
    """Halves between two steps of 8 bits: one fall of the last bit, as by another order of a sum, is a whole step."""
    rng = np.random.default_rng(0)
    steps = np.append(rng.integers(-99, 99, 31) + 0.5, 127).astype(np.float32)
    arrays = {"steps": steps[None], "little": np.float32(10.1), "scales": np.full(4, 0.1, np.float32),
              "w": rng.integers(0, 256, (4, 1, 16)).astype(np.uint8), "w1": random(8, 4)}  # fmt: skip
    end = """p = com.microsoft.MatMulNBits <K = 32, N = 4, bits = 4, block_size = 32, accuracy_level = 4> (z, w, scales)
        h = MatMul(x, w1) y = Add(h, p)"""
    there = f"up = Add(steps, little) z = Sub(up, little) {end}"
    texts = [f"g (float[N,8] x) => (float[N,4] y) {{ {text} }}" for text in (there, f"z = Identity(steps) {end}")]
    masked, pruned = (graph(text, arrays, domains=', "com.microsoft" : 1') for text in texts)
    assert seeded(masked) is masked and comparable(masked) is not masked
    assert prove(masked, masked, pruned).difference < 1e-6


def test_the_limit_follows_the_models_own_rounding() -> None:
    steep = network("s = Mul(z, big) y = Sin(s)", big=np.float32(3000))
    masked = zeroed(steep, "w1", 3)
    other = masked.clone()
    value = other.graph.initializers["w2"]
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1 + 2e-7), name="w2")
    proof = prove(steep, masked, other)
    assert 1e-4 < proof.difference <= proof.limit
    with pytest.raises(VerificationError):
        prove(network("y = Identity(z)"), zeroed(network("y = Identity(z)"), "w1", 3), network("y = Identity(z)"))


def test_a_model_of_which_nothing_is_proved_is_written_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.verification import proof

    monkeypatch.setattr(proof, "_in_front", lambda model: [])
    model = SILENT["constant"][0]
    settings = {"sparsity": 0.5, "structure": "channels", "latency": False}
    with pytest.raises(VerificationError, match="nothing was proved.*--accept-unproved"):
        onnxprune.prune(model, **settings)
    result = onnxprune.prune(model, **settings, accept_unproved=True)
    assert result.figures["proved"] is False and "is constant" in result.figures["unproved"]
    assert any("nothing was proved" in note for note in result.notes)


def test_each_part_of_an_output_has_its_own_scale() -> None:
    """Boxes in pixels and scores in one tensor: destroyed scores show beside boxes of 960."""
    rng = np.random.default_rng(0)
    output = np.concatenate([rng.uniform(0, 960, (1, 4, 400)), rng.uniform(0, 1, (1, 3, 400))], axis=1)
    ruined = output.copy()
    ruined[:, 4:] = 0.5
    assert change_of_output(output, ruined) > 0.4
    assert change_of_output(output.transpose(0, 2, 1), ruined.transpose(0, 2, 1)) > 0.4
    assert change_of_output(output, output * (1 + 1e-3)) == pytest.approx(1e-3, rel=1e-6)
    assert change_of_output(np.ones((2, 10)), np.full((2, 10), 1.01)) == pytest.approx(0.01)


def test_the_change_of_indices_is_the_share_that_differs() -> None:
    labels = np.zeros((10, 1), np.int64)
    other = labels.copy()
    other[:3] = 7
    assert change_of_output(labels, other) == pytest.approx(0.3) and change_of_output(labels, labels) == 0
    assert change_of_output(labels > 0, other > 0) == pytest.approx(0.3)


def _ill(epsilon: float, dtype: type = np.float32) -> onnx.ModelProto:
    """1 / (m - m'), where m' is nearly m: rounding moves it by a large share of its largest value."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((64, 1024)), "v": rng.standard_normal((1024, 32)), "e": np.array(-1.0)}
    weights["u"] = weights["v"] * (1 + epsilon)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["m"]),
        helper.make_node("MatMul", ["r", "u"], ["n"]),
        helper.make_node("Sub", ["m", "n"], ["q"]),
        helper.make_node("Pow", ["q", "e"], ["y"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "ill", [info("x", kind, ["N", 64])], [info("y", kind, ["N", 32])],
        [numpy_helper.from_array(a.astype(dtype), n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(("epsilon", "dtype"), [(1e-2, np.float32), (1e-3, np.float32), (1e-2, np.float16)])
def test_the_limit_follows_the_model_s_own_rounding(epsilon: float, dtype: type) -> None:
    built = _ill(epsilon, dtype)
    result = prune(built, sparsity=0.3, structure="channels", round_to="none", ends="prune", latency=False)
    assert result.figures["proved"] is True


def test_where_rounding_hides_all_the_values_in_front_are_compared() -> None:
    built = _ill(1e-5)
    result = prune(built, sparsity=0.3, structure="channels", round_to="none", ends="prune", latency=False)
    assert result.figures["proved"] is True and result.figures["removed_vs_masked"] < 1e-4
    assert "ill-conditioned" in " ".join(result.notes)


def test_a_model_that_onnx_runtime_does_not_load_is_not_blamed_on_the_result() -> None:
    built = _ill(1e-2, ml_dtypes.bfloat16)
    with pytest.raises(ModelError, match="--no-verify"):
        prune(built, sparsity=0.3, structure="channels", round_to="none", ends="prune", latency=False)
