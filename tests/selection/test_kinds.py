"""``--kinds`` knows the names by which inspect tells units apart."""

from __future__ import annotations

import decoders
import onnx
import pytest

import onnxprune
from onnxprune import model_io
from onnxprune.errors import NothingToPrune, RecipeError
from onnxprune.graph.narrowing import free_caches
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.run import prune
from onnxprune.recipe.granularity import read_kind
from onnxprune.recipe.recipe import Recipe
from onnxprune.selection.eligible import eligible_groups, eligible_weights
from onnxprune.structure.architecture import attentions, called

CALLED = {"kv-groups", "query-heads", "neurons", "hidden"}


def picked(kinds: tuple[str, ...], *, inexact: bool = True) -> set[str]:
    model = model_io.load_any(decoders.fused())
    free_caches(model)
    structure = prepare(model)
    recipe = Recipe(sparsity=0.5, structure="channels", kinds=kinds, allow_inexact=inexact)
    groups = eligible_groups(structure, eligible_weights(structure, recipe), recipe)
    return {called(group, attentions(structure)) for group in groups}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [((), CALLED), (("heads",), {"kv-groups", "query-heads"}), (("kv-groups",), {"kv-groups"}),
     (("query-heads",), {"query-heads"}), (("hidden",), {"hidden"}), (("neurons",), {"neurons"}),
     (("KV groups", "Neurons"), {"kv-groups", "neurons"})],
)  # fmt: skip
def test_a_kind_picks_what_inspect_calls_so(kinds: tuple[str, ...], expected: set[str]) -> None:
    assert picked(kinds) == expected


def test_inspect_tells_the_names_that_the_flag_takes() -> None:
    kinds = {group.kind: group.called for group in onnxprune.inspect(decoders.fused()).groups}
    assert kinds == {"query-heads": "query heads per group", "neurons": "neurons", "hidden": "hidden"}
    assert all(read_kind(name) == kind for kind, name in kinds.items())


def test_only_kv_groups_go() -> None:
    result = prune(decoders.fused(), sparsity=0.3, structure="channels", kinds="kv-groups", interface="narrow",
                   latency=False)  # fmt: skip
    nodes = [n for n in model_io.to_proto(result.model).graph.node if n.op_type == "GroupQueryAttention"]
    for node in nodes:
        heads = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert heads["num_heads"] == 2 * heads["kv_num_heads"] and heads["kv_num_heads"] < decoders.KV_HEADS


def test_kv_groups_of_caches_that_stay_are_refused_in_words() -> None:
    with pytest.raises(NothingToPrune, match="KV groups are heads of the caches, which keep them without --resize-io"):
        prune(decoders.fused(), sparsity=0.3, structure="channels", kinds="kv-groups")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("layers", "--structure layers"), ("feet", "choose from heads, head-size, .*kv-groups, query-heads")],
)  # fmt: skip
def test_other_names_are_refused_in_words(kind: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        prune(decoders.fused(), sparsity=0.3, structure="channels", kinds=kind)
