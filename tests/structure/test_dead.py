"""Dead units of random graphs: what is found goes without a trace, and what was zeroed is found."""

from __future__ import annotations

import grown
import numpy as np
import onnx_ir as ir
import oracle
import pytest
from small_models import graph, random

from onnxprune import runtime
from onnxprune.passes import RemoveDeadUnits, Tidy
from onnxprune.structure.analysis import analyse
from onnxprune.structure.dead import dead_atoms
from onnxprune.structure.masking import zero_units

from .graphs import load, value
from .twins import normalised


def grown_model(kind: str, seed: int) -> ir.Model:
    rng = np.random.default_rng(seed)
    steps = [(int(a), int(b), int(c)) for a, b, c in rng.integers(0, 24, (5, 3))]
    return normalised(grown.grow(getattr(grown, kind), steps, seed))


@pytest.mark.parametrize("kind", ["IMAGE", "SEQUENCE"])
def test_units_whose_weights_are_all_zero_are_dead(kind: str) -> None:
    found = 0
    for seed in range(25):
        model = grown_model(kind, seed)
        structure = analyse(model)
        atoms = np.concatenate([*(g.atoms for g in structure.groups if not g.inexact), np.zeros(0, np.int64)])
        removed = oracle.choose(structure, atoms, 0.5, seed)
        zero_units(structure, removed)
        dead = dead_atoms(analyse(model))
        assert dead[removed].all(), seed
        found += int(removed.sum())
    assert found > 100


@pytest.mark.parametrize("kind", ["IMAGE", "SEQUENCE"])
def test_what_is_dead_goes_without_a_trace(kind: str) -> None:
    """Rows and columns of all matrices are zeroed at random, with no regard to what they belong to."""
    gone = 0
    for seed in range(25):
        model, rng = grown_model(kind, seed), np.random.default_rng(seed)
        for initializer in model.graph.initializers.values():
            tensor = initializer.const_value
            if tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape) > 1:
                content = tensor.numpy().copy()
                for axis in (0, 1):
                    zeroed = rng.random(content.shape[axis]) < 0.3
                    np.moveaxis(content, axis, 0)[zeroed] = 0
                initializer.const_value = ir.Tensor(content, name=initializer.name)
        original = model.clone()
        done = RemoveDeadUnits()
        done(model)
        Tidy()(model)
        gone += done.removed
        for feeds in runtime.working_inputs(original, count=1, seed=seed):
            assert runtime.compare(original, model, feeds).max_rel < 1e-5, seed
    assert gone > 40


DEAD_COLUMN = "agraph (float[n, 4] x) => (float[n, 2] y) {{ h = MatMul(x, w)  {} }}"


@pytest.mark.parametrize(
    ("reader", "weights"),
    [
        ("y = MatMul(h, v)", {"v": (6, 2)}),
        ("y = Gemm(h, v)", {"v": (6, 2)}),
        ("y = Gemm <transB = 1> (h, u)", {"u": (2, 6)}),
        ("t = Transpose(h)  z = Gemm <transA = 1> (t, v)  y = Identity(z)", {"v": (6, 2)}),
        ("t = Transpose(h)  z = MatMul(u, t)  y = Transpose(z)", {"u": (2, 6)}),
        ("t = Transpose(h)  z = Gemm(u, t)  y = Transpose(z)", {"u": (2, 6)}),
        ("u2 = Transpose(u)  y = MatMul(h, u2)", {"u": (2, 6)}),
        ("v2 = Cast <to = 1> (v)  y = MatMul(h, v2)", {"v": (6, 2)}),
        ("z = MatMul(h, v1)  o = MatMul(x, w2)  z2 = Unsqueeze(z, one)  y = Add(o, z2)", {"v1": (6,), "w2": (4, 2)}),
        ("a = Relu(h)  b = Sigmoid(h)  c = Add(a, b)  y = MatMul(c, v)", {"v": (6, 2)}),
    ],
)
def test_a_unit_that_every_reader_multiplies_by_zero_is_dead(reader: str, weights: dict[str, tuple[int, ...]]) -> None:
    contents = {name: random(*shape) for name, shape in {"w": (4, 6), **weights}.items()}
    for name in {"v", "u", "v1"} & set(weights):
        contents[name][(slice(None), [1, 4]) if name == "u" else [1, 4]] = 0
    structure = analyse(load(DEAD_COLUMN.format(reader), one=np.array([1]), **contents))
    ids = structure.ids(value(structure, "w"), 1)
    assert ids is not None
    dead = dead_atoms(structure)
    assert [bool(dead[list(structure.terms.atoms(int(i)))].all()) for i in ids] == [i in (1, 4) for i in range(6)]


@pytest.mark.parametrize(
    "reader",
    [
        "k = MatMul(h, v)  s = ReduceMax <keepdims = 1> (h, one)  y = Add(k, s)",
        "k = MatMul(h, v)  s = ReduceSum <keepdims = 1> (h, one)  y = Add(k, s)",
        "k = MatMul(h, v)  s = Softmax(h)  o = MatMul(s, v2)  y = Add(k, o)",
        "k = MatMul(h, v)  o = MatMul(h, v2)  y = Add(k, o)",
        "k = MatMul(h, v)  t = Transpose(h)  q = MatMul(h, t)  r = ReduceMax <keepdims = 1> (q, one)  y = Add(k, r)",
    ],
)
def test_a_unit_that_one_reader_does_not_multiply_by_zero_lives(reader: str) -> None:
    contents = {"w": random(4, 6), "v": random(6, 2), "v2": random(6, 2, seed=1)}
    contents["v"][:3] = 0
    structure = analyse(load(DEAD_COLUMN.format(reader), one=np.array([1]), **contents))
    assert not dead_atoms(structure).any()


def test_columns_of_a_stack_of_matrices_are_seen_behind_a_turn() -> None:
    text = """agraph (float[2, n, 4] x) => (float[2, n, 3] y) {
        h = MatMul(x, w)  t = Transpose <perm = [0, 2, 1]> (v)  y = MatMul(h, t) }"""
    contents = {"w": random(4, 6), "v": random(2, 3, 6)}
    contents["v"][:, :, [1, 4]] = 0
    structure = analyse(load(text, **contents))
    ids = structure.ids(value(structure, "w"), 1)
    assert ids is not None
    dead = dead_atoms(structure)
    assert [bool(dead[list(structure.terms.atoms(int(i)))].all()) for i in ids] == [i in (1, 4) for i in range(6)]


def test_a_hidden_unit_of_a_recurrent_cell_is_read_by_the_others() -> None:
    """Nothing behind the cell reads units 0 and 1, but the state of unit 0 still goes into the other gates."""
    text = (
        "agraph (float[t, n, 4] x) => (float[t, 1, n, 2] y) { h = RNN <hidden_size = 6> (x, w, r)  y = MatMul(h, v) }"
    )
    contents = {"w": random(1, 6, 4), "r": random(1, 6, 6), "v": random(6, 2)}
    contents["v"][:2] = 0
    contents["r"][:, :, 1] = 0
    structure = analyse(load(text, **contents))
    ids = structure.ids(value(structure, "v"), 0)
    assert ids is not None
    dead = dead_atoms(structure)
    assert [bool(dead[list(structure.terms.atoms(int(i)))].all()) for i in ids] == [i == 1 for i in range(6)]


def test_weights_without_zeros_of_their_own_are_not_dead() -> None:
    """A divisor is never zero, and int8 weights at their zero point are not looked at."""
    model = graph(
        "agraph (float[N,4] x) => (float[N,2] y) { a = MatMul(x, w) h = Div(a, d) y = MatMul(h, v) }",
        {"w": random(4, 6), "d": random(6), "v": random(6, 2)},
    )
    structure = analyse(model)
    assert not dead_atoms(structure).any()
    zeroed = random(4, 6)
    zeroed[:, 2] = 0
    model = graph(
        "agraph (float[N,4] x) => (float[N,2] y) { a = MatMul(x, w) h = Div(a, d) y = MatMul(h, v) }",
        {"w": zeroed, "d": random(6), "v": np.where(np.arange(6)[:, None] == 2, 0, random(6, 2)).astype(np.float32)},
    )
    assert dead_atoms(analyse(model)).sum() == 1
