"""Templates become pages: names come from files that strangers made, so all text is escaped. Needs jinja2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxprune.errors import RecipeError
from onnxprune.report.text import visible


def render_page(template: str, content: Mapping[str, Any], *, flag: str) -> str:
    """Return a page.

    Args:
        template: A file of this folder.
        content: What it shows, by name.
        flag: What asked for it, for a message.

    Raises:
        RecipeError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise RecipeError(f"{flag} needs jinja2: pip install 'onnxprune[report]'") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda text: visible(text, keep="\n\t") if type(text) is str else text,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["shape"] = lambda shape: "×".join(map(str, shape)) or "scalar"
    return environment.get_template(template).render(content)
