"""The pages are easy to read: Flesch's reading ease of at least 50, and no sentence of more than 30 words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

textstat = pytest.importorskip("textstat", reason="textstat is not installed: pip install 'onnxprune[test]'")

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "models" / "README.md"]
    + [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md")]
)
LEAST_EASE, MOST_WORDS = 50, 30


def prose(text: str) -> list[str]:
    """The paragraphs and items of a page, without code, tables, headings, pictures and addresses of links."""
    for pattern in (r"```.*?```", r"<!--.*?-->", r"<[^>]+>", r"!\[[^\]]*\]\([^)]*\)"):
        text = re.sub(pattern, "", text, flags=re.S)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    parts = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=[#|])", text):
        block = re.sub(r"^(?:[-*]|\d+\.) ", "", " ".join(block.split()))
        if block and not block.startswith(("#", "|")):
            block = re.sub(r"\*+", "", re.sub(r"`[^`]*`", "code", block))
            parts.append(block if block.endswith((".", "!", "?", ":")) else f"{block}.")
    return parts


def sentences(paragraph: str) -> list[str]:
    return [sentence for sentence in re.split(r"(?<=[.!?:])\s+", paragraph) if sentence]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_easy_to_read(page: Path) -> None:
    paragraphs = prose(page.read_text(encoding="utf-8"))
    long = [s for paragraph in paragraphs for s in sentences(paragraph) if len(s.split()) > MOST_WORDS]
    assert not long, f"sentences of more than {MOST_WORDS} words: {long}"
    if len(paragraphs) > 3:
        assert textstat.flesch_reading_ease(" ".join(paragraphs)) >= LEAST_EASE


def test_what_is_hard_to_read_is_found() -> None:
    easy = "Units go in order. The rest is fitted."
    hard = "Multidimensional parameterisation necessitates computational considerations of heterogeneous architectures."
    assert textstat.flesch_reading_ease(easy) > LEAST_EASE > textstat.flesch_reading_ease(hard)
    text = "# Title\n\nOne `--flag` here.\n- an item\n\n| a | b |\n```console\nonnxprune x\n```\nSee [that](there.md)."
    assert prose(text) == ["One code here.", "an item.", "See that."]


def test_the_readme_is_short_and_names_the_words_that_people_search_for() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    pages = text + "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for word in (
        "YOLO",
        "BERT",
        "optimum",
        "Hugging Face",
        "timm",
        "torchvision",
        "Keras",
        "TensorFlow",
        "scikit-learn",
    ):
        assert word in pages


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http", "mailto:")) and "reference/" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
