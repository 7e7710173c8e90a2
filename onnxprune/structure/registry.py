"""Operator rules: how each operator ties the axes of its inputs, weights and outputs together.

A *rule* is called once per node during analysis; it gives the node's outputs their axes and unifies what must live and
die together. A *rewriter* is called after units were removed; it re-derives what carries an extent (attributes, shape
constants). Both are registered by operator name (``Conv``, or ``com.microsoft::FusedConv``) in one module per family.
An operator without a rule pins all that it touches, which is always sound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from onnxprune.plugins import Plugins, Registry

if TYPE_CHECKING:
    from onnxprune.structure.rewriter import Rewriter
    from onnxprune.structure.view import View

    Rule = Callable[[View], None]
    NodeRewrite = Callable[[Rewriter, "ir.Node"], None]

    import onnx_ir as ir

FAMILIES = (
    "elementwise",
    "contraction",
    "movement",
    "indexing",
    "resizing",
    "reshaping",
    "repeating",
    "reduction",
    "normalisation",
    "pooling",
    "recurrent",
    "control",
    "fused",
    "rotary",
    "attention",
    "grouped",
    "quantised",
    "packed",
    "experts",
    "sources",
    "pinned",
)

PLUGINS = Plugins("onnxprune.rules", [f"onnxprune.structure.rules.{family}" for family in FAMILIES])
RULES: Registry[Rule] = Registry("rule", PLUGINS)
REWRITERS: Registry[NodeRewrite] = Registry("rewriter", PLUGINS)
REASONS: dict[str, str] = {}
"""Operators that are pinned on purpose, with the reason."""


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register the analysis rule of one or more operators."""
    return RULES.register(*operators)


def rewriter(*operators: str) -> Callable[[NodeRewrite], NodeRewrite]:
    """Register the rewrite of one or more operators whose attributes or constants carry extents."""
    return REWRITERS.register(*operators)


def pinned(reason: str, *operators: str) -> None:
    """Say that operators pin all that they touch, and why."""
    REASONS.update(dict.fromkeys(operators, reason))


def find_rule(name: str) -> Rule | None:
    """Return the rule registered for a key, or None."""
    return RULES.get(name)


def find_rewriter(name: str) -> NodeRewrite | None:
    """Return the rewriter registered for a key, or None."""
    return REWRITERS.get(name)


def summary(name: str) -> str:
    """Return the first line of what a rule says of itself."""
    function = find_rule(name)
    return (function.__doc__ or "").strip().splitlines()[0] if function is not None else ""


def registered() -> dict[str, str]:
    """Return every registered operator with the family (module) of its rule, for the generated table in docs/."""
    return {name: function.__module__.rsplit(".", 1)[-1] for name, function in sorted(RULES.items())}
