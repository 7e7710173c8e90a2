"""JSON as RFC 8259 has it: figures that are no numbers, NaN and infinities, are null.

text, lost = dumps({"change": float("inf")})     # '{\n "change": null\n}', ["change"]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(content: Any) -> tuple[str, list[str]]:
    """Return the text, and the paths of the figures that became null. Text that is no Unicode is escaped."""
    lost: list[str] = []
    return json.dumps(_plain(content, "", lost), indent=1, allow_nan=False), lost


def _plain(content: Any, path: str, lost: list[str]) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _plain(value, f"{path}.{key}" if path else str(key), lost) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value, f"{path}[{i}]", lost) for i, value in enumerate(content)]
    if content is None or isinstance(content, (str, bool, int)):
        return content
    number = float(content)  # of numpy, too
    if math.isfinite(number):
        return number
    lost.append(path)
    return None
