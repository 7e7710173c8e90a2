"""same_bytes: what it calls equal, and that a model which went in differently is told from one that came out so.

The recorded hashes themselves are no part of the suite: some belong to the processor that they were made on.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import same_bytes
import same_bytes_trace
from onnx import helper

PAIR = "models/digits_mlp sparsity=0.5"


@pytest.fixture(autouse=True)
def causes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for traced commits of the test's own; there are none."""
    monkeypatch.setattr(same_bytes, "CAUSES", tmp_path / "causes.json")
    return tmp_path / "causes.json"


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
    lines = list(same_bytes.differences({"pair": then}, {"pair": {"commit": "2", **now}}, {}))
    assert [said in line for line in lines] == [True] if said else lines == []


@pytest.mark.parametrize(
    ("traced", "known", "meant"),
    [("b", "c1", True), ("b", "c2", False), ("another", "c1", False)],
    ids=["as traced", "a commit without a reason", "changed since it was traced"],
)
def test_a_difference_is_meant_where_its_commit_has_a_reason(
    traced: str, known: str, meant: bool, causes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    results, state = tmp_path / "results.json", tmp_path / "state.json"
    pairs = [pair for pair in same_bytes.all_pairs() if pair.name == PAIR]
    for path, model in ((results, "a"), (state, "b")):
        entry = {"commit": same_bytes.commit_of_package(), "source": "s", "model": model, "record": "r"}
        same_bytes.write(path, {"machine": same_bytes.machine(), "pairs": {PAIR: entry}})
    same_bytes.write(causes, {"pairs": {PAIR: {"commits": ["c1"], "model": traced, "record": "r"}}})
    monkeypatch.setattr(same_bytes, "REASONS", {known: "a fault was mended"})
    assert same_bytes.check(pairs, results, state, 1) == (0 if meant else 1)
    assert (f"differs as meant: {PAIR}: model: a fault was mended\n" in capsys.readouterr().out) == meant


def test_the_commits_that_changed_a_pair_are_found_by_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pair a writes changed at commits 3, 6 and 8, that of b never, that of c came back to what it was."""
    written = {"a": "0001112233", "b": "0000000000", "c": "0000110000"}
    runs: list[int] = []

    def run(history: same_bytes_trace.History, number: int, names: list[str]) -> None:
        runs.append(number)
        for name in names:
            history.known[name][number] = (written[name][number], "r", None)

    monkeypatch.setattr(same_bytes_trace.History, "run", run)
    history = same_bytes_trace.History([f"c{i}" for i in range(10)], tmp_path)
    recorded = {name: {"model": written[name][0], "record": "r"} for name in written}
    assert same_bytes_trace.trace(history, recorded) == {"a": ["c3", "c6", "c8"]}
    assert runs.count(9) == 1


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
