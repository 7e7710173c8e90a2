"""Settings as the flags that say them: the way back from a `Recipe` to a command line.

flags_of(make_recipe(sparsity=0.5, structure="channels"))       # ["--sparsity", "0.5", "--structure", "channels"]
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from onnxprune.recipe.flag import Flag, flag_name, flag_of


def flags_of(settings: BaseModel) -> list[str] | None:
    """Return the flags of all settings that differ from their defaults; None where one of them has no flag.

    Args:
        settings: A recipe, or a part of one.
    """
    flags: list[str] = []
    for name, field in type(settings).model_fields.items():
        value, default = getattr(settings, name), field.get_default(call_default_factory=True)
        if value == default:
            continue
        flag = flag_of(field)
        always_there = isinstance(default, BaseModel)  # settings of their own whose fields have flags, without a switch
        inner = flags_of(value) if isinstance(value, BaseModel) else []
        if inner is None or (flag is None and not always_there):
            return None
        flags += [*([] if flag is None else _flags(flag_name(type(settings), name), flag, value)), *inner]
    return flags


def _flags(name: str, flag: Flag, value: Any) -> list[str]:
    """The words of one flag."""
    if isinstance(value, BaseModel) or flag.switch or value is True:
        return [name]
    if value is False:
        return [f"--no-{name[2:]}"]
    if not isinstance(value, tuple):
        return [name, str(value)]
    numbers = all(isinstance(part, (int, float)) for part in value)
    if flag.commas or numbers:
        return [name, ",".join(map(str, value))]
    return [word for part in value for word in (name, str(part))]
