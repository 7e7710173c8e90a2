"""docs/criteria.md says what the registries say."""

from __future__ import annotations

from generated import DOCS, script

from onnxprune.scoring import criteria


def test_the_page_is_up_to_date_and_complete() -> None:
    page = (DOCS / "criteria.md").read_text(encoding="utf-8")
    assert page == script("generate_criteria").table(), "run docs/generate_criteria.py"
    assert all(f"| `{name}` |" in page for name in criteria())
