"""Units of merged decoders are scored in the branch that the samples take."""

from __future__ import annotations

from typing import Any

import merged
import numpy as np
import oracle
import pytest

import onnxprune as api
from onnxprune import model_io
from onnxprune.graph.branches import with_branch_inlined
from onnxprune.graph.narrowing import free_caches
from onnxprune.runtime.session import make_session, run
from onnxprune.scoring.in_branch import Pairs
from onnxprune.structure.analysis import analyse

BRANCHES = ["then_branch", "else_branch"]
UNITS: dict[str, Any] = {"structure": "channels", "sparsity": 0.3, "latency": False, "recover": "no"}


def samples(past: int, rows: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = merged.feeds(past)
    caches = {name: rng.standard_normal((rows, *array.shape[1:])).astype(np.float32)
              for name, array in feeds.items() if name.startswith("past")}  # fmt: skip
    tokens, mask = rng.integers(0, merged.VOCABULARY, (rows, 6)), np.ones((rows, 6 + past), np.int64)
    return {"input_ids": tokens, "attention_mask": mask, **caches, "use_cache_branch": feeds["use_cache_branch"]}


@pytest.mark.parametrize("branch", BRANCHES)
def test_units_of_a_branch_are_told_by_common_weights(branch: str) -> None:
    model = oracle.normalised(merged.decoder())
    free_caches(model)
    structure = analyse(model)
    view = analyse(with_branch_inlined(model, branch))
    inside = {str(value.name): value for value in view.sources}
    rng = np.random.default_rng(0)
    scores = rng.random(view.terms.count)
    told, has = Pairs.of(structure, view).told(scores, np.ones(view.terms.count, bool))
    for group in structure.groups:
        assert has[group.atoms].all()
        if group.kind == "neurons" and len(group) == merged.INNER:  # one atom each on either side
            site = group.sites[0]
            ours, theirs = structure.ids(site.value, site.axis), view.ids(inside[str(site.value.name)], site.axis)
            assert ours is not None and theirs is not None
            (rows, atoms), (inner_rows, inner) = structure.terms.members(ours), view.terms.members(theirs)
            np.testing.assert_array_equal(rows, inner_rows)
            np.testing.assert_array_equal(told[atoms], scores[inner])
    _, none = Pairs.of(structure, view).told(scores, np.zeros(view.terms.count, bool))
    assert not none.any()


def error(model: Any, past: int) -> float:
    feeds = samples(past, seed=5)
    dense, ours = (run(make_session(m), feeds)["logits"] for m in (oracle.normalised(merged.decoder()), model))
    return float(np.square(ours - dense).mean() / np.square(dense).mean())


@pytest.mark.parametrize("past", [0, 3])
def test_units_that_matter_to_the_samples_stay(past: int) -> None:
    settings = {**UNITS, "kinds": ("neurons",)}
    measured = api.prune(merged.decoder(), calibration=samples(past), **settings)
    assert measured.verdict is not None and measured.verdict.removed_vs_masked < 1e-4
    by_weights = api.prune(merged.decoder(), criterion="magnitude", allocation="cost", **settings)
    assert error(measured.model, past) < 0.8 * error(by_weights.model, past)


@pytest.mark.parametrize("criterion", ["activation", "auto"])
def test_units_that_only_the_other_branch_has_stay_and_are_told(criterion: str) -> None:
    """The first branch reads weights of its own in one layer; the samples take the second."""
    proto = merged.decoder()
    renamed = {f"1.{kind}.weight": f"first.{kind}.weight" for kind in ("up", "down")}
    choice = next(node for node in proto.graph.node if node.op_type == "If")
    first = next(a.g for a in choice.attribute if a.name == "else_branch")
    for node in first.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    for tensor in [t for t in proto.graph.initializer if t.name in renamed]:
        proto.graph.initializer.add().CopyFrom(tensor)
        proto.graph.initializer[-1].name = renamed[tensor.name]
    result = api.prune(proto, criterion=criterion, calibration=samples(3), kinds=("neurons",), **UNITS)
    assert any("first." in name for name in result.untouched), result.untouched
    left = {t.name: t.dims for t in model_io.to_proto(result.model).graph.initializer}
    assert left["first.up.weight"] == [merged.WIDTH, merged.INNER]
    assert min(left["0.up.weight"][1], left["1.up.weight"][1]) < merged.INNER
