"""Several names in one setting, in a sequence or in one text with commas: ``crop,flip``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


def listed(names: Any) -> Any:
    """The names of a text with commas; what is no text is left as it is.

    Raises:
        ValueError: The text holds none.
    """
    if not isinstance(names, str):
        return names
    if not names.strip(" ,"):
        raise ValueError("it has to be a name, or several with commas")
    return tuple(part.strip() for part in names.split(",") if part.strip())


Names = Annotated[tuple[str, ...], BeforeValidator(listed)]
