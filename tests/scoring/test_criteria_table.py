"""docs/criteria.md says what the registries say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from onnxprune.scoring import criteria

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_up_to_date_and_complete() -> None:
    spec = importlib.util.spec_from_file_location("generate_criteria", DOCS / "generate_criteria.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "criteria.md").read_text(encoding="utf-8")
    assert page == module.table(), "run docs/generate_criteria.py"
    assert all(f"| `{name}` |" in page for name in criteria())
