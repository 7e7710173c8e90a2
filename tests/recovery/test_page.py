"""docs/recovery.md tells what benchmarks/results/ hold."""

from __future__ import annotations

from generated import DOCS, script


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "recovery.md").read_text(encoding="utf-8") == script("generate_recovery").page()
