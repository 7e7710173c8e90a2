"""Text of models and of file names, shown so that it can do no harm: names come from files that strangers made."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from rich.markup import escape

# Control characters move a terminal's cursor, formats turn the direction of reading, surrogates are bytes that no
# encoding explains, and the last two break lines.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: str, *, keep: str = "") -> str:
    r"""Write characters that would act instead of being seen as escapes: ``visible("a\x1b[2J") == "a\\x1b[2J"``.

    Args:
        text: Any text.
        keep: Characters that stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _UNSEEN and c not in keep else c for c in text)


def shown(text: str) -> str:
    """Return a text for Rich, which neither acts on a terminal nor counts as markup."""
    return escape(visible(text))


def _escaped(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def cut_middle(text: str, width: int) -> str:
    """Shorten a text in its middle, where names of layers differ least: ``cut_middle("blocks.0.conv1", 9)`` is
    ``bloc…onv1``."""
    if len(text) <= width:
        return text
    kept = max(width - 1, 2)
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


_NUMBERED = re.compile(r"(?:onnx::)?(?:[A-Za-z]+_)?\d+")


def readable_name(name: str, nodes: Mapping[str, str]) -> str:
    """Return the name of a weight, or of one of its axes, as a person knows it.

    Exporters that fold or transpose a weight call it by a number: ``onnx::Conv_497[0]``. The node that reads it still
    bears the name of the layer: ``/layer1/conv1/Conv[0]``.

    Args:
        name: The weight's, with or without an axis in brackets.
        nodes: The name of the node that reads each weight.
    """
    weight, bracket, axis = name.partition("[")
    node = nodes.get(weight, "")
    return f"{node}{bracket}{axis}" if node and _NUMBERED.fullmatch(weight) else name
