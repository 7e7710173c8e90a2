"""Write onnxprune/recipe/settings.py from the fields of the recipe: ``python docs/generate_settings.py``.

Editors complete keywords only of what stands in a file. So the typed keywords of `onnxprune.prune` are written from the
fields, and a test says when they are to be written again.
"""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from onnxprune.pipeline.sweep_grid import VARIED
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.training import DataSettings, TrainSettings

TARGET = Path(__file__).parents[1] / "onnxprune" / "recipe" / "settings.py"
_SECTIONS = {TrainSettings: "TrainingSettings", DataSettings: "ReadingSettings"}
_HEAD = '''\
"""The settings of `onnxprune.prune` and `onnxprune.sweep` as typed keywords, by which editors complete them.

Written by docs/generate_settings.py from the fields of the recipe; do not edit.
"""

# fmt: off
# ruff: noqa: E501
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

from onnxprune.recipe.training import DataSettings, TrainSettings'''


def text() -> str:
    """Return the module."""
    fields = Recipe.model_fields
    fixed = {name: field for name, field in fields.items() if name not in VARIED}
    varied = {name: field for name, field in fields.items() if name in VARIED}
    parts = [
        _HEAD,
        *_typed_dict("ReadingSettings", "TypedDict", "How data are read.", DataSettings.model_fields),
        *_typed_dict("TrainingSettings", "TypedDict", "One training.", TrainSettings.model_fields),
        *_typed_dict("FixedSettings", "TypedDict", "Settings that have one value in a sweep, too.", fixed),
        *_typed_dict("Settings", "FixedSettings", "All settings of a run.", varied),
        *_typed_dict("SweepSettings", "FixedSettings", "All settings of a sweep.", varied, several=True),
    ]
    return "\n".join(parts).replace("\n\n\n\n", "\n\n\n") + "\n"


def _typed_dict(
    name: str, base: str, about: str, fields: dict[str, FieldInfo], *, several: bool = False
) -> Iterator[str]:
    yield f'\n\nclass {name}({base}, total=False):\n    """{about}"""\n'
    for field, info in fields.items():
        kind = _type(info.annotation, info)
        if several:
            kind = " | ".join([*(part for part in kind.split(" | ") if part != "None"), f"Sequence[{kind}]"])
        yield f"    {field}: {kind}"
        if not several and info.description:
            yield _docstring(info.description)


def _docstring(description: str) -> str:
    sentence = description[:1].upper() + description[1:].rstrip(".") + "."
    return textwrap.fill(
        f'"""{sentence}"""', 120, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
    )


def _type(annotation: Any, info: FieldInfo) -> str:
    """The type of what a field takes, which may be wider than what it holds."""
    read = any(isinstance(part, BeforeValidator) for part in info.metadata)
    arms = list(dict.fromkeys(part for arm in _arms(annotation) for part in _names(arm, read)))
    return " | ".join(sorted(arms, key=lambda arm: arm == "None"))


def _arms(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        for arm in get_args(annotation):
            yield from _arms(arm)
    else:
        yield annotation


def _names(arm: Any, read: bool) -> Iterator[str]:
    """The types of one arm of a union."""
    if get_origin(arm) is Annotated:
        inner, *metadata = get_args(arm)
        read = read or any(isinstance(part, BeforeValidator) for part in metadata)
        for part in _arms(inner):
            yield from _names(part, read)
    elif arm is type(None):
        yield "None"
    elif get_origin(arm) is Literal:
        yield f"Literal[{', '.join(map(_quoted, get_args(arm)))}]"
        yield from ["bool"] * read
    elif get_origin(arm) is tuple:
        yield from ["str"] * read
        inner = "str" if get_args(arm)[0] is str else "float"
        yield f"Sequence[{inner}]"
    elif isinstance(arm, type) and issubclass(arm, BaseModel):
        yield arm.__name__
        yield _SECTIONS[arm]
        yield from ["bool"] * read
    elif arm is Path:
        yield from ("str", "Path")
    else:
        yield arm.__name__
        yield from ["str"] * (read and arm is float)


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
