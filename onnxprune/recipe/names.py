"""Several names in one setting, in a sequence or in one text with commas: ``crop,flip``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


def listed(names: Any) -> Any:
    """The names of a text with commas; what is no text is left as it is."""
    return tuple(part.strip() for part in names.split(",") if part.strip()) if isinstance(names, str) else names


Names = Annotated[tuple[str, ...], BeforeValidator(listed)]
