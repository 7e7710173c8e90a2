"""Passes of a few lines: what they change, what they say of it, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from small_models import array, graph, random, two_layers

from onnxprune import runtime
from onnxprune.passes import MaskUnits, MaskWeights, Normalise, RemoveDeadUnits, RemoveUnits, Tidy
from onnxprune.passes.normalise import COPY_OF, renamed_copies
from onnxprune.passes.remove_dead import compose_kept
from onnxprune.structure.analysis import analyse
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools


def of_units(structure: Structure, units: list[int]) -> Bools:
    """Return flags for some neurons of `two_layers`."""
    removed = np.zeros(structure.terms.count, bool)
    (group,) = structure.groups
    removed[group.atoms[units]] = True
    return removed


def test_removed_is_masked_as_passes() -> None:
    smaller, zeroed = two_layers(), two_layers()
    structure, other = analyse(smaller), analyse(zeroed)
    removed = of_units(structure, [3, 30])
    cut, mask = RemoveUnits(structure, removed), MaskUnits(other, removed)
    assert cut(smaller).modified and mask(zeroed).modified
    left = np.delete(np.arange(32), [3, 30])
    assert {n: {i: k.tolist() for i, k in axes.items()} for n, axes in cut.kept.items()} == {
        "w1": {1: left.tolist()},
        "b1": {0: left.tolist()},
        "w2": {0: left.tolist()},
    }
    assert array(smaller, "w1").shape == (8, 30) and (array(zeroed, "w1")[:, [3, 30]] == 0).all()
    for feeds in runtime.working_inputs(smaller, count=2):
        assert runtime.compare(zeroed, smaller, feeds).max_rel < 1e-6


def test_nothing_removed_modifies_nothing() -> None:
    model = two_layers()
    structure = analyse(model)
    assert not RemoveUnits(structure, np.zeros(structure.terms.count, bool))(model).modified
    assert not RemoveDeadUnits()(two_layers()).modified


def test_units_of_another_model_are_refused() -> None:
    structure = analyse(two_layers())
    with pytest.raises(ir.passes.PreconditionError, match="another model"):
        RemoveUnits(structure, of_units(structure, [1]))(two_layers())


def test_a_constant_that_was_not_cut_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lie(structure: Structure, removed: Bools) -> Mapping[str, Mapping[int, npt.NDArray[np.int64]]]:
        return {"w1": {1: np.arange(5)}}

    monkeypatch.setattr("onnxprune.passes.remove_units.remove", lie)
    model = two_layers()
    structure = analyse(model)
    with pytest.raises(ir.passes.PostconditionError, match="w1 was not cut along axis 1"):
        RemoveUnits(structure, of_units(structure, [1]))(model)


def test_two_removals_are_counted_in_indices_of_the_first() -> None:
    first = {"a": {0: np.array([0, 2, 3, 5])}, "b": {1: np.array([1])}}
    second = {"a": {0: np.array([1, 3]), 1: np.array([4])}, "c": {0: np.array([7])}}
    found = compose_kept(first, second)
    assert {n: {i: k.tolist() for i, k in axes.items()} for n, axes in found.items()} == {
        "a": {0: [2, 5], 1: [4]},
        "b": {1: [1]},
        "c": {0: [7]},
    }
    assert first["a"].keys() == {0}


# -- Tidy -----------------------------------------------------------------------------------------------------------


def copies(contents: Mapping[str, npt.NDArray[np.generic]], copy_of: Mapping[str, str]) -> ir.Model:
    """A model that adds up all constants, some of which are marked as copies."""
    chain = "x"
    text = []
    for i, name in enumerate(contents):
        text.append(f"s{i} = Add({chain}, {name})")
        chain = f"s{i}"
    model = graph(
        f"agraph (float[N,4] x) => (float[N,4] y) {{ {' '.join(text)} y = Identity({chain}) }}", dict(contents)
    )
    for name, source in copy_of.items():
        model.graph.initializers[name].metadata_props[COPY_OF] = source
    return model


def test_copies_that_stayed_equal_are_joined_and_others_are_not() -> None:
    a = random(4)
    contents = {"a": a, "a1": a.copy(), "a2": a + 1, "b": a.copy(), "a3": (a + 1).reshape(1, 4), "a4": a + 1}
    model = copies(contents, dict.fromkeys(("a1", "a2", "a3", "a4"), "a"))
    original = model.clone()
    assert Tidy()(model).modified
    assert set(model.graph.initializers) == {"a", "a2", "b", "a3"}
    for feeds in runtime.working_inputs(original, count=1):
        assert runtime.compare(original, model, feeds).max_rel == 0
    assert renamed_copies(model) == {"a2": "a", "a3": "a"}
    assert not Tidy()(model).modified


def test_what_nobody_reads_goes() -> None:
    model = graph(
        "agraph (float[N,4] x) => (float[N,4] y) { a = Add(x, u) y = Add(x, v) }", {"u": random(4), "v": random(4)}
    )
    assert Tidy()(model).modified
    assert set(model.graph.initializers) == {"v"} and [n.op_type for n in model.graph] == ["Add"]


# -- Normalise ------------------------------------------------------------------------------------------------------


def test_a_constant_that_three_layers_share_gets_two_copies() -> None:
    text = "agraph (float[N,4] x) => (float[N,4] y) { a = Add(x, b) c = Mul(a, b) y = Sub(c, b) }"
    content = random(4)
    model = graph(text, {"b": content, "b_copy1": random(1)})
    before = model.clone()
    assert Normalise()(model).modified
    names = [str(n.inputs[1].name) for n in model.graph if n.inputs[1] is not None]
    assert names[0] == "b" and len(set(names)) == 3 and "b_copy1" not in names
    assert renamed_copies(model) == {names[1]: "b", names[2]: "b"}
    assert all((array(model, n) == content).all() for n in names)
    for feeds in runtime.working_inputs(before, count=1):
        assert runtime.compare(before, model, feeds).max_rel == 0


@pytest.mark.parametrize(
    ("content", "copied"),
    [
        (random(4), True),
        (random(1, 4), True),
        (random(4, 4), False),
        (random(1), False),
        (np.arange(4), False),
    ],
    ids=["vector", "row", "matrix", "number", "integers"],
)
def test_only_constants_with_one_real_axis_are_copied(content: npt.NDArray[np.generic], copied: bool) -> None:
    kind = "float" if content.dtype.kind == "f" else "int64"
    model = graph(f"agraph ({kind}[4,4] x) => ({kind}[4,4] y) {{ a = Add(x, b) y = Mul(a, b) }}", {"b": content})
    Normalise()(model)
    assert len(model.graph.initializers) == (2 if copied else 1)


def test_a_constant_that_is_an_output_or_may_be_overridden_is_not_copied() -> None:
    text = "agraph (float[N,4] x) => (float[N,4] y, float[4] b) { a = Add(x, b) y = Mul(a, b) }"
    model = graph(text, {"b": random(4)})
    Normalise()(model)
    assert list(model.graph.initializers) == ["b"]
    text = "agraph (float[N,4] x, float[4] b) => (float[N,4] y) { a = Add(x, b) y = Mul(a, b) }"
    model = graph(text, {"b": random(4)})
    Normalise()(model)
    assert list(model.graph.initializers) == ["b"]


def test_first_states_of_each_kind_of_cell_are_copied() -> None:
    for cell, gates, states in (("RNN", 1, "h"), ("GRU", 3, "h"), ("LSTM", 4, "h, h")):
        text = f"""agraph (float[5,2,4] x) => (float[5,1,2,4] y) {{
            a = {cell} <hidden_size = 4> (x, w, r, , , {states}) b = Squeeze(a, one)
            y = {cell} <hidden_size = 4> (b, w, r, , , {states}) }}"""
        weights = {"w": random(1, 4 * gates, 4), "r": random(1, 4 * gates, 4), "h": random(1, 2, 4)}
        model = graph(text, {**weights, "one": np.array([1])})
        Normalise()(model)
        assert sum(n.startswith("h") for n in model.graph.initializers) == (4 if cell == "LSTM" else 2)


def test_a_first_state_that_another_operator_reads_is_not_copied() -> None:
    model = graph(
        "agraph (float[5,2,4] x) => (float[5,1,2,4] y) { a = RNN <hidden_size = 4> (x, w, r, , , h) y = Add(a, h) }",
        {"w": random(1, 4, 4), "r": random(1, 4, 4), "h": random(1, 2, 4)},
    )
    Normalise()(model)
    assert set(model.graph.initializers) == {"w", "r", "h"}


def test_functions_are_inlined() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        agraph (float[N,4] x) => (float[N,4] y) { y = mine.twice(x) }
        <opset_import: ["" : 17], domain: "mine"> twice (a) => (b) { c = Add(a, a) b = Identity(c) }"""
    )
    model = ir.from_proto(proto)
    assert Normalise()(model).modified
    assert not model.functions and all(n.domain == "" for n in model.graph)


def test_nothing_to_do_modifies_nothing() -> None:
    model = two_layers()
    assert not Normalise()(model).modified and not Tidy()(model).modified


def test_weights_are_masked_where_they_are_told_to_be() -> None:
    model = two_layers(4)
    structure = analyse(model)
    before = array(model, "w1")
    keep = random(8, 4) > 0
    value = next(v for v in structure.weights if v.name == "w1")
    assert not MaskWeights(structure, {value: np.ones((8, 4), bool)})(model).modified
    assert MaskWeights(structure, {value: keep})(model).modified
    assert np.array_equal(array(model, "w1"), np.where(keep, before, 0))


def test_weights_that_are_filled_at_run_time_are_masked_in_a_constant_of_their_own() -> None:
    model = graph(
        "agraph (float[N,4] x) => (float[N,6] y) { w = ConstantOfShape <value = float[1] {0.5}> (s) y = MatMul(x, w) }",
        {"s": np.array([4, 6])},
    )
    structure = analyse(model)
    keep = random(4, 6) > 0
    (value,) = structure.weights
    assert MaskWeights(structure, {value: keep})(model).modified
    (masked,) = [a for n in model.graph.initializers if (a := array(model, n)).shape == (4, 6)]
    assert np.array_equal(masked, np.where(keep, np.float32(0.5), 0))
