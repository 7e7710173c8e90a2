"""Numbers as people write them: ``0.5``, ``50%``, ``0.5x`` and ``2x``, each where it has one meaning.

share_gone("50%")    # 0.5
share_gone("4x")     # 0.75: a quarter is left
share_left("2x")     # 0.5: twice as fast, or half as large
share_left("0.5x")   # 0.5
row("224x224")       # ["224", "224"]
"""

from __future__ import annotations

import re
from typing import Any


def fraction(text: Any) -> Any:
    """``50%`` is 0.5. What is no such text is left as it is, for the field to judge."""
    number = _number(text, "%")
    return text if number is None else number / 100


def share_gone(text: Any) -> Any:
    """A share that goes: ``50%`` is 0.5; ``4x`` (four times smaller) leaves a quarter, so 0.75 goes."""
    times = _number(text, "x")
    return fraction(text) if times is None or times < 1 else 1 - 1 / times


def share_left(text: Any) -> Any:
    """A figure after / before: ``50%`` and ``0.5x`` are 0.5; ``2x`` (twice as fast, half as large) is 0.5 as well."""
    times = _number(text, "x")
    if times is None:
        return fraction(text)
    return 1 / times if times > 1 else times


def row(text: Any) -> Any:
    """Several numbers in one text, with commas or as height x width; what is no text is left as it is."""
    return re.split(r"[,x]", text) if isinstance(text, str) else text


def _number(text: Any, unit: str) -> float | None:
    """The number before a unit; None where the text has another form."""
    if not isinstance(text, str) or not text.strip().endswith(unit):
        return None
    try:
        return float(text.strip().removesuffix(unit))
    except ValueError:
        return None
