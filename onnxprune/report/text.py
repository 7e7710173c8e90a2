"""Text of models and of file names, shown so that it can do no harm: names come from files that strangers made."""

from __future__ import annotations

import unicodedata

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
