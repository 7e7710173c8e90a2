"""same_bytes: what it calls equal, and that a model which went in differently is told from one that came out so.

The recorded hashes themselves are no part of the suite: some belong to the processor that they were made on.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import same_bytes
from onnx import helper

PAIR = "models/digits_mlp sparsity=0.5"


def test_a_check_names_each_pair_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, state = tmp_path / "results.json", tmp_path / "state.json"
    pairs = [pair for pair in same_bytes.all_pairs() if pair.name == PAIR]
    assert same_bytes.record(pairs, results, 1, again=False) == 0
    state.write_bytes(results.read_bytes())
    assert same_bytes.check(pairs, results, state, 1) == 0
    assert capsys.readouterr().out.endswith("1 of 1 equal\n")
    content = json.loads(results.read_text())
    content["pairs"][PAIR]["model"] = "0" * 64
    results.write_text(json.dumps(content))
    assert same_bytes.check(pairs, results, state, 1) == 1
    printed = capsys.readouterr().out
    assert f"differs: {PAIR}: model (recorded at " in printed and printed.endswith("0 of 1 equal\n")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"source": "a", "model": "b", "record": "c"}, None),
        ({"source": "a", "model": "b", "record": "d"}, "record (recorded"),
        ({"source": "x", "model": "y", "record": "c"}, "source, model: the model that goes in is another"),
        ({"error": "RecipeError: no"}, "it fails now"),
    ],
)
def test_what_differs_is_said(now: dict[str, str], said: str | None) -> None:
    then = {"commit": "1", "source": "a", "model": "b", "record": "c"}
    lines = list(same_bytes.differences({"pair": then}, {"pair": {"commit": "2", **now}}))
    assert [said in line for line in lines] == [True] if said else lines == []


def test_a_difference_that_is_meant_is_told_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, state = tmp_path / "results.json", tmp_path / "state.json"
    pairs = [pair for pair in same_bytes.all_pairs() if pair.name == PAIR]
    for path, model in ((results, "a"), (state, "b")):
        entry = {"commit": same_bytes.commit_of_package(), "source": "s", "model": model}
        same_bytes.write(path, {"machine": same_bytes.machine(), "pairs": {PAIR: entry}})
    monkeypatch.setattr(same_bytes, "REASONS", {"models/digits_mlp *": "a fault was mended"})
    assert same_bytes.check(pairs, results, state, 1) == 0
    printed = capsys.readouterr().out
    assert f"differs as meant: {PAIR}: model: a fault was mended\n0 of 1 equal\n1 of the 1" in printed


def test_a_made_model_does_not_hold_the_paths_of_its_sources() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    for key, value in ((same_bytes.STACK_TRACE, "File '/home/me/net.py', line 3"), ("namespace", "net")):
        node.metadata_props.add(key=key, value=value)
    branch = helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("y", 1, [2])])
    outer = helper.make_node("If", ["condition"], ["z"], then_branch=branch, else_branch=branch)
    model = helper.make_model(helper.make_graph([node, outer], "g", [], []))
    same_bytes.without_stack_traces(model)
    inner = [onnx.helper.get_attribute_value(attribute).node[0] for attribute in model.graph.node[1].attribute]
    for left in (model.graph.node[0], *inner):
        assert [entry.key for entry in left.metadata_props] == ["namespace"]


def test_pairs_bear_names_of_their_own_that_patterns_find() -> None:
    names = [pair.name for pair in same_bytes.all_pairs()]
    assert len(set(names)) == len(names) >= 60
    assert PAIR in [pair.name for pair in same_bytes.chosen(["digits_mlp sparsity"])]
    found = [pair.name for pair in same_bytes.chosen(["made/*structure=2:4"])]
    assert found and all(name.startswith("made/") and name.endswith("structure=2:4") for name in found)
