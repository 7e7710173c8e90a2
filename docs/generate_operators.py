"""Write docs/operators.md from the registry of operator rules: ``python docs/generate_operators.py``."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from onnxprune.structure import registry

TARGET = Path(__file__).with_name("operators.md")

_INTRODUCTION = """\
# Operators

Written by `docs/generate_operators.py` from the rules in `onnxprune/structure/rules`; do not edit.

An operator with a rule lets units be removed through it: the table says how it ties the axes of its operands. A pinned
operator keeps every axis that it touches, for the reason given; so does an operator that stands in neither table.
"""


def table() -> str:
    """Return the page as Markdown."""
    followed = registry.registered()
    lines = [
        _INTRODUCTION,
        f"## Followed: {len(followed)}",
        "",
        "| operator | family | what it ties |",
        "|---|---|---|",
    ]
    for name, family in sorted(followed.items(), key=lambda item: _order(item[0])):
        lines.append(f"| {name} | {family} | {_escaped(registry.summary(name))} |")
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in registry.REASONS.items():
        reasons[reason].append(name)
    lines += ["", "## Pinned", "", "| reason | operators |", "|---|---|"]
    for reason, names in reasons.items():
        lines.append(f"| {_escaped(reason)} | {', '.join(_collapsed(names))} |")
    return "\n".join(lines) + "\n"


def _order(name: str) -> tuple[str, str]:
    domain, _, operator = name.rpartition("::")
    return domain, operator


def _collapsed(names: list[str]) -> list[str]:
    """Name domains that are pinned as a whole once; their operators change with the version of onnx."""
    domains = ("ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training", "ai.onnx.training")
    plain = [n for n in names if _order(n)[0] not in domains]
    return sorted(plain, key=_order) + sorted({f"all of {_order(n)[0]}" for n in names if n not in plain})


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(table(), encoding="utf-8")
