"""Recovery in one pass: targets make up for what is upstream, and the cost is linear in depth."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune import runtime
from onnxprune.graph.linear import linear_layers
from onnxprune.recovery import fitting, recover
from onnxprune.recovery.reconstruct import last_layers
from onnxprune.recovery.streamed import Pair, is_held, streamed_moments
from onnxprune.runtime.stream import cursor
from onnxprune.runtime.stream.gather import Batches

from .models_to_recover import constant, cut, network

SUM = """<ir_version: 8, opset_import: ["": 13]>
sum (float[N, 6] x) => (float[N, 4] y) {
  s = MatMul(x, w0)
  a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) y = Add(b, s)
}"""
SHAPES = {"w0": (6, 4), "w1": (6, 64), "w2": (64, 4)}


SIDE_BY_SIDE = """<ir_version: 8, opset_import: ["": 13]>
side (float[N, 6] x) => (float[N, 3] y) {
  h = MatMul(x, w) r = Relu(h) a = MatMul(r, w0) b = MatMul(r, w1) c = Mul(a, b) y = MatMul(c, out)
}"""


def changed(model: ir.Model, name: str, array: np.ndarray) -> ir.Model:
    """The model with other numbers in one constant."""
    model.graph.initializers[name].const_value = ir.Tensor(array.astype(np.float32), name=name)
    return model


def test_the_end_of_a_branch_makes_up_for_its_shortcut() -> None:
    """The shortcut lost what it had; without a shift of the target the branch, which is whole, would stay as it is."""
    dense = network(SUM, SHAPES)
    pruned = changed(dense.clone(), "w0", np.zeros((6, 4)))
    x = np.random.default_rng(0).standard_normal((512, 6)).astype(np.float32)
    run = recover(dense, pruned, {}, {"x": x})
    found = runtime.run(runtime.make_session(pruned), {"x": x})["y"]
    wanted = runtime.run(runtime.make_session(dense), {"x": x})["y"]
    lost = x @ constant(dense, "w0")
    assert np.square(found - wanted).sum() < 0.05 * np.square(lost).sum()
    assert run.after is not None and run.before is not None and run.after < run.before


def deep(blocks: int) -> ir.Model:
    """A stack of residual blocks."""
    body = "".join(
        f"a{i} = MatMul(s{i}, u{i}) r{i} = Relu(a{i}) c{i} = MatMul(r{i}, v{i}) s{i + 1} = Add(s{i}, c{i})\n"
        for i in range(blocks)
    )
    text = f"""<ir_version: 8, opset_import: ["": 13]>
    deep (float[N, 6] x) => (float[N, 3] y) {{ s0 = MatMul(x, w)\n{body} y = MatMul(s{blocks}, out) }}"""
    shapes: dict[str, tuple[int, ...]] = {"w": (6, 8), "out": (8, 3)}
    for i in range(blocks):
        shapes |= {f"u{i}": (8, 9), f"v{i}": (9, 8)}
    return network(text, shapes)


@pytest.mark.parametrize("blocks", [3, 12])
def test_the_cost_is_linear_in_depth(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that are run, in all programs together: so many times those of the model, however deep it is."""
    counted: list[int] = []
    real = cursor.Program.__init__

    def counting(self: cursor.Program, model: ir.Model, nodes: list[ir.Node], *args: object, **named: object) -> None:
        counted.append(len(cursor.needed_nodes(nodes, set(args[0]))))  # type: ignore[call-overload]
        real(self, model, nodes, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(cursor.Program, "__init__", counting)
    dense = deep(blocks)
    pruned = changed(dense.clone(), "w", 0.9 * constant(dense, "w"))
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    recover(dense, pruned, {}, {"x": x})
    assert sum(counted) <= 4 * len(list(dense.graph))


@pytest.mark.parametrize(("count", "held"), [(2, [1]), (5, [4]), (8, [7]), (20, [7, 15])])
def test_one_batch_of_eight_is_held_back_from_all_fits(count: int, held: list[int]) -> None:
    assert [number for number in range(count) if is_held(number, count)] == held


def test_no_layer_sees_what_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It chooses ridges and judges: slightly other numbers in it change no weight where there is one ridge."""
    monkeypatch.setattr(fitting, "RIDGES", (1e-2,))
    dense = deep(2)
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    moved = x.copy()
    moved[-8:] *= 1.001
    results, names = [], ("v0", "u1", "v1")
    for inputs in (x, moved):
        pruned, kept = cut(dense.clone(), "u0", 1, [0, 3, 5])
        steps = recover(dense, pruned, kept, {"x": inputs}, batch=8).steps
        results.append(([step.applied for step in steps], [constant(pruned, n) for n in names]))
    assert results[0][0] == results[1][0]
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert np.array_equal(one, other)
    assert last_layers(dense, linear_layers(dense)[0]) == {"out"}  # it may see all: no layer reads it


def test_layers_that_read_the_same_rows_share_their_sums() -> None:
    """Of wide layers Gram matrices are the largest arrays: one to fit to and one to judge by, for all of them."""
    dense = network(SIDE_BY_SIDE, {"w": (6, 5), "w0": (5, 4), "w1": (5, 4), "out": (4, 3)})
    pairs = [Pair.of(layer, layer, None) for layer in linear_layers(dense)[0]]
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    samples = Batches.of(dense, {"x": x}, 8)
    stages = {tuple(pair.pruned.name for pair, _ in s): s for s in streamed_moments(dense, dense, pairs, samples)}
    (fitted, judged), others = (parts for _, parts in stages["w0", "w1"])
    assert [part.aa is other.aa for part, other in zip((fitted, judged), others, strict=True)] == [True, True]
    r = np.maximum(x @ constant(dense, "w"), 0)
    np.testing.assert_allclose(fitted.aa[0], r[:-8].T @ r[:-8], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(judged.az[0], r[-8:].T @ r[-8:] @ constant(dense, "w0"), rtol=1e-4, atol=1e-4)
