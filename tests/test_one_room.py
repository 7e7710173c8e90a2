"""Every fact about operators has one room: no list of operator names outside the table of operators and its users.

Rules, the bridge's functions and the shape functions stay by family, so these may name operators. A dict from names to
functions says what is done with an operator, not what it is; all other lists of names state a property.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import onnxprune
from onnxprune.graph.operators import operators

PACKAGE = Path(onnxprune.__file__).resolve().parent
PASSES = (PACKAGE / "passes").resolve()
ROOMS = ("graph/operators.py", "graph/shapes.py", "graph/contrib_shapes.py", "structure/rules/", "bridge/ops/")


def operator_names() -> set[str]:
    """Names without their domains, of ONNX and of the table."""
    schemas = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    return schemas | {name.rpartition("::")[2] for name in operators()}


def sources() -> list[Path]:
    files = {file.resolve() for folder in (PACKAGE, PASSES) for file in folder.rglob("*.py")}
    return sorted(file for file in files if not _room(file).startswith(ROOMS))


def _room(file: Path) -> str:
    return f"passes/{file.name}" if file.is_relative_to(PASSES) else file.relative_to(PACKAGE).as_posix()


def lists(tree: ast.AST, names: set[str]) -> Iterator[tuple[int, list[str]]]:
    """Lines and names of each list, tuple, set, dict or text of words that names at least two operators."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Set | ast.Tuple | ast.List):
            entries: list[ast.expr | None] = list(node.elts)
        elif isinstance(node, ast.Dict) and not all(
            isinstance(v, ast.Name | ast.Attribute | ast.Lambda) for v in node.values
        ):
            entries = list(node.keys)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            words = node.value.split()
            if len(words) > 1 and all(word in names for word in words):
                yield node.lineno, words
            continue
        else:
            continue
        first = [e.elts[0] if isinstance(e, ast.Tuple) and e.elts else e for e in entries]
        found = [e.value for e in first if isinstance(e, ast.Constant) and isinstance(e.value, str)]
        operators_ = [text for text in found if text.rpartition("::")[2] in names]
        if len(operators_) >= 2:
            yield node.lineno, operators_


def test_no_list_of_operators_outside_the_table() -> None:
    names = operator_names()
    found = [
        f"{_room(file)}:{line}: {', '.join(listed)}"
        for file in sources()
        for line, listed in lists(ast.parse(file.read_text(encoding="utf-8")), names)
    ]
    assert not found, "say it once in graph/operators.py:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        'X = {"Relu", "Tanh"}',
        'if op in ("Conv", "Gemm"): pass',
        'X = [("Clip", 1), ("Pad", 2)]',
        'X = {"Conv": 0, "ConvTranspose": 1}',
        'X = "Relu Tanh Sigmoid".split()',
        'X = frozenset(["com.microsoft::FusedConv", "Conv"])',
    ],
)
def test_such_a_list_is_found(text: str) -> None:
    assert list(lists(ast.parse(text), operator_names()))


@pytest.mark.parametrize("text", ['X = {"Conv": f, "Gemm": g}', 'if op == "Conv": pass', 'X = ("Relu", "name")'])
def test_others_are_not(text: str) -> None:
    assert not list(lists(ast.parse(text), operator_names()))
