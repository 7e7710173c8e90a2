"""What is wrong with a command line, in the words that a recipe's settings have, whichever Typer reads the line.

Typer tells of a wrong number in pydantic's words or in click's, as its version has it, and without the number.
"""

from __future__ import annotations

from typing import Any

import typer
from pydantic import ConfigDict, TypeAdapter, ValidationError

from onnxprune.recipe.recipe import in_words

_MORE = "(onnxprune --help tells more)"
_READS: dict[Any, TypeAdapter[Any]] = {
    int: TypeAdapter(int),
    float: TypeAdapter(float, config=ConfigDict(allow_inf_nan=False)),
}


def number(kind: Any) -> dict[str, Any]:
    """Arguments of ``typer.Option`` by which a flag reads an int or float; none for another type."""
    if kind not in _READS:
        return {}

    def read(text: Any) -> Any:
        try:
            return _READS[kind].validate_python(text)
        except ValidationError as error:
            raise typer.BadParameter(in_words(error.errors(), repr(text))) from None

    return {"parser": read, "metavar": f"<{kind.__name__}>"}


def usage(error: Any) -> str:
    """The sentence for a line that Typer cannot read."""
    message = str(error.format_message()).rstrip(".")
    kind, flag = type(error).__name__, getattr(error, "option_name", "")
    if not message:  # no arguments: the help was printed
        return f"give a model {_MORE}"
    if kind == "NoSuchOption":
        near = " or ".join(error.possibilities or ())
        return f"there is no flag {flag}{f': is {near} meant?' if near else ''} {_MORE}"
    if kind == "BadOptionUsage":
        return f"{flag} takes no value: write it alone" if "not take" in message else f"{flag} needs a value {_MORE}"
    parameter: Any = getattr(error, "param", None)
    if kind == "MissingParameter":
        return f"{parameter.metavar or parameter.name} is missing {_MORE}"
    if parameter is not None and error.message:
        return f"{max(parameter.opts, key=len)}: {error.message}"
    return f"{message} {_MORE}"
