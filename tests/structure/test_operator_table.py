"""Every operator has a rule or a reason, and docs/operators.md says which."""

from __future__ import annotations

import onnx
from generated import DOCS, script

from onnxprune.graph.operators import key
from onnxprune.structure import registry


def test_every_onnx_operator_has_a_rule_or_a_reason() -> None:
    known = {*registry.registered(), *registry.REASONS}
    names = {key(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas_with_history()}
    assert names - known == set()


def test_no_operator_has_both() -> None:
    assert set(registry.registered()) & set(registry.REASONS) == set()


def test_every_rule_and_reason_says_something() -> None:
    assert all(registry.summary(name) for name in registry.registered())
    assert all(registry.REASONS.values())


def test_an_operator_without_a_rule_has_nothing_to_say() -> None:
    assert registry.find_rule("NoSuchOperator") is None and registry.find_rewriter("NoSuchOperator") is None
    assert registry.summary("NoSuchOperator") == ""


def test_the_table_is_up_to_date() -> None:
    assert (DOCS / "operators.md").read_text(encoding="utf-8") == script("generate_operators").table(), (
        "run docs/generate_operators.py"
    )
