"""What every rule leaves free is what freedom.txt says: a rule that ties or pins more than it must would show here."""

from __future__ import annotations

from collections import defaultdict

import pytest

from . import freedom
from .form_cases import all_cases

_HOW = "if that is meant: PYTHONPATH=.:tests python -m structure.freedom > tests/structure/freedom.txt"


def _by_operator() -> dict[str, list[str]]:
    out: dict[str, list[str]] = defaultdict(list)
    for name in freedom.EXPECTED:
        operator, _, case = name.partition("/")
        out[operator].append(case)
    return out


@pytest.mark.parametrize("operator", [name for name in _by_operator() if name not in freedom.KINDS])
def test_a_rule_leaves_free_what_it_can(operator: str) -> None:
    """Another version of onnx may lack some of its cases."""
    known = {case.name: case for case in all_cases(operator)}
    names = [name for name in _by_operator()[operator] if name in known]
    assert names
    for name in names:
        assert freedom.of_case(known[name]) == freedom.EXPECTED[f"{operator}/{name}"], (name, _HOW)


@pytest.mark.parametrize("kind", freedom.KINDS)
@pytest.mark.parametrize("part", range(4))
def test_random_graphs_leave_free_what_they_can(kind: str, part: int) -> None:
    for seed in range(part, freedom.GRAPHS, 4):
        assert freedom.of_graph(kind, seed) == freedom.EXPECTED[f"{kind}/{seed}"], (seed, _HOW)
