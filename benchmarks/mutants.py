"""The faults that `mutation.py` puts into the package: mutmut's operators on the body of every function.

mutmut's own runner leaves decorated functions alone, and nearly every rule of this package is one (``@rule("Conv")``).
So its operators are used here as a library, and what they make is put in place by `mutation.py`.

Not mutated, for no test should see it: the text of messages and reasons, annotations, ``assert`` (they narrow types),
``strict=`` of zip (a check of what always holds), the arguments of ``len`` and ``isinstance`` (as mutmut has it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.mutators import mutation_operators

_FUTURE = "from __future__ import annotations\n"


@dataclass(frozen=True, eq=False)
class Mutant:
    """One fault in one function.

    Attributes:
        key: Names the fault, the same in every run as long as the function is the same.
        path: The file.
        function: Where the fault is.
        owner: The class of the function, if it is a method.
        old: The node that was there.
        new: The node that takes its place.
        line: Where it stands.
        lines: All lines of the statement that holds it: a test that runs none of them cannot see it.
        before: The code that was there, for people.
        after: The code that takes its place.
    """

    key: str
    path: Path
    function: cst.FunctionDef
    owner: cst.ClassDef | None
    old: cst.CSTNode
    new: cst.CSTNode
    line: int
    lines: range
    before: str
    after: str

    @property
    def qualname(self) -> str:
        """The function, as ``co_qualname`` has it."""
        return _qualname(self.function, self.owner)

    def code(self) -> CodeType:
        """Return the compiled function, with the fault."""
        changed = cst.ensure_type(self.function.deep_replace(self.old, self.new), cst.FunctionDef)
        source = _FUTURE + _source(changed, self.owner)
        match = _find(compile(source, str(self.path), "exec", dont_inherit=True), self.qualname)
        if match is None:
            raise LookupError(f"{self.path} has no function {self.qualname}")
        return match


def sample(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """Draw some of the mutants without favour, in the order of the draw: the first of them are a fair sample too.

    A mutant that is drawn stays drawn when other functions change.
    """
    return sorted(mutants, key=lambda mutant: hashlib.sha256(f"{seed} {mutant.key}".encode()).digest())[:count]


def mutants_of(path: Path) -> list[Mutant]:
    """Return all faults of a file."""
    wrapper = MetadataWrapper(cst.parse_module(path.read_text(encoding="utf-8")))
    positions, parents = wrapper.resolve(PositionProvider), wrapper.resolve(ParentNodeProvider)
    out = []
    for function, owner in _functions(wrapper.module):
        stem = f"{path.name} {_qualname(function, owner)} {_source(function, owner)}"
        for number, (old, new) in enumerate(_changes(function.body)):
            place: CodeRange = positions[old]
            statement: CodeRange = positions[_statement(old, parents)]
            before, after = (_short(wrapper.module.code_for_node(n)) for n in (old, new))
            if before == after:
                continue
            key = hashlib.sha256(f"{stem} {number} {after}".encode()).hexdigest()[:16]
            lines = range(min(statement.start.line, place.start.line), place.end.line + 1)
            out.append(Mutant(key, path, function, owner, old, new, place.start.line, lines, before, after))
    return out


def _qualname(function: cst.FunctionDef, owner: cst.ClassDef | None) -> str:
    return function.name.value if owner is None else f"{owner.name.value}.{function.name.value}"


def _functions(module: cst.Module) -> Iterator[tuple[cst.FunctionDef, cst.ClassDef | None]]:
    for node in module.body:
        if isinstance(node, cst.FunctionDef):
            yield node, None
        elif isinstance(node, cst.ClassDef):
            yield from ((inner, node) for inner in node.body.body if isinstance(inner, cst.FunctionDef))


def _source(function: cst.FunctionDef, owner: cst.ClassDef | None) -> str:
    bare: cst.FunctionDef | cst.ClassDef = function.with_changes(decorators=[], leading_lines=[])
    if owner is not None:  # super() needs its class
        bare = owner.with_changes(decorators=[], leading_lines=[], body=cst.IndentedBlock([bare]))  # type: ignore[list-item]
    return cst.Module([bare]).code


def _changes(node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, cst.CSTNode]]:
    if _left_alone(node):
        return
    for kind, operator in mutation_operators:
        if isinstance(node, kind):
            for new in operator(node):
                if not _drops_message(node, new):
                    yield node, new
    for child in node.children:
        yield from _changes(child)


def _left_alone(node: cst.CSTNode) -> bool:
    match node:
        case cst.Annotation() | cst.Assert() | cst.Raise() | cst.FormattedString() | cst.ConcatenatedString():
            return True
        case cst.SimpleString():
            return _is_message(node)
        case cst.Arg(keyword=cst.Name("strict")):
            return True
        case cst.Call(func=cst.Name("len" | "isinstance" | "issubclass" | "super")):
            return True
        case cst.SimpleStatementLine(body=[cst.Expr(cst.SimpleString())]):
            return True
    return False


def _is_message(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.FormattedString | cst.ConcatenatedString) or (
        isinstance(node, cst.SimpleString) and " " in node.value
    )


def _drops_message(old: cst.CSTNode, new: cst.CSTNode) -> bool:
    """Say whether a call only loses the text of a message, or ``strict=``."""
    if not (isinstance(old, cst.Call) and isinstance(new, cst.Call)):
        return False
    left = {id(a) for a in new.args}
    gone = [a for a in old.args if id(a) not in left]
    return any(_is_message(a.value) or (a.keyword is not None and a.keyword.value == "strict") for a in gone)


def _statement(node: cst.CSTNode, parents: dict[cst.CSTNode, cst.CSTNode]) -> cst.CSTNode:
    while not isinstance(node, cst.BaseStatement | cst.SimpleStatementLine | cst.BaseSmallStatement):
        node = parents[node]
    return node


def _short(code: str) -> str:
    line = " ".join(code.split())
    return line if len(line) <= 160 else line[:157] + "..."


def _find(code: CodeType, qualname: str) -> CodeType | None:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            match = inner if inner.co_qualname == qualname else _find(inner, qualname)
            if match is not None:
                return match
    return None
