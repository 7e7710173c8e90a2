"""How a setting is written on the command line, said beside its type, default and help text and nowhere else.

    steps: Annotated[int | None, Flag("Retrain")] = Field(None, ge=1, description="Optimiser steps, instead of epochs.")

Flags, `--help`, `--help-all`, the names in messages and the reference page are all made from this.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel
from pydantic.fields import FieldInfo

TURNS = "Retrain: pruning and training in turns"
"""The heading of what means something only where a run retrains."""

SUBJECTS = (
    "How much",
    "What goes",
    "In steps",
    "Data",
    "Data: how they are read",
    "Retrain",
    TURNS,
    "Retrain: optimiser and regularisation",
    "Deploy",
    "Run",
)
"""The headings of ``--help-all``, in order."""


@dataclass(frozen=True)
class Flag:
    """The flag of a setting.

    Attributes:
        subject: One of `SUBJECTS`.
        everyday: A text that fits a line, for ``--help``; empty where only ``--help-all`` shows the flag.
        name: Without the dashes, where it is not the setting's: two settings may bear one name, two flags may not.
        short: Such as ``-s``.
        commas: Whether several values are written in one, with commas; else the flag is repeated.
        shown: The default as help shows it, where the value itself would not tell; "" for none.
        switch: Whether it is written without a value; its setting takes True.
        argument: Whether it is no flag but an argument.
    """

    subject: str
    everyday: str = ""
    name: str = ""
    short: str = ""
    commas: bool = False
    shown: str | None = None
    switch: bool = False
    argument: bool = False


def flag_of(field: FieldInfo) -> Flag | None:
    """Return the flag of a setting; None where it has none."""
    return next((part for part in field.metadata if isinstance(part, Flag)), None)


def flag_name(model: type[BaseModel], setting: str) -> str:
    """Return the flag of a setting with its dashes: ``--lr``."""
    flag = flag_of(model.model_fields[setting])
    return "--" + (flag.name if flag is not None and flag.name else setting.replace("_", "-"))
