"""Recipe files: everything that flags can say, in one TOML file, and presets for the usual aims.

    model = "net.onnx"                  # any flag of `onnxprune prune`, without the dashes
    structure = "channels"
    sparsity = 0.5
    require = ["latency<=0.6"]

Paths are relative to the folder of the file. Flags given beside the file win over it, and it wins over a preset.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from onnxprune.errors import RecipeError
from onnxprune.model_io.text_files import read_text, write_whole
from onnxprune.recipe.fields import AMOUNTS, SYNTHETIC
from onnxprune.recipe.flag import flag_of
from onnxprune.recipe.recipe import Recipe, in_words, make_recipe, of_one_value

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same parser under its older name
    import tomli as tomllib

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "smallest": {"structure": "weights", "sparsity": 0.9, "remove_dead": True, "pack": "smallest"},
    "fastest": {"structure": "joint", "target_latency": 0.5, "round_to": "auto"},
    "safe": {"structure": "weights", "sparsity": 0.5, "pack": "auto", "require": ["metric_drop<=0.01"]},
}
"""Settings by aim. ``safe`` writes nothing that costs more than 0.01 of the metric, so it needs ``--eval-data``."""

_FINITE = ConfigDict(allow_inf_nan=False)
_MOST_SHOWN = 80  # characters of a wrong value


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file says.

    Attributes:
        path: The file.
        settings: Values by flag, with underscores; paths are made absolute.
    """

    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        """Return the part that decides what happens to the model, preset included, for the Python API.

        Raises:
            RecipeError: Something is missing.
        """
        settings = preset(self.settings.get("preset"), self.settings)
        return make_recipe(**{name: value for name, value in settings.items() if name in Recipe.model_fields})


def preset(name: str | None, beside: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Return the settings of a preset, none for None, with those of a recipe file, which win over them.

    What a file says of how much goes takes the place of what the preset says of it, in whatever words.

    Raises:
        RecipeError: There is no such preset.
    """
    if name is not None and name not in PRESETS:
        raise RecipeError(f"--preset: there is no {name!r}; choose from {', '.join(PRESETS)}")
    settings, beside = dict(PRESETS[name]) if name is not None else {}, beside or {}
    if any(amount in beside for amount in AMOUNTS):
        settings = {key: value for key, value in settings.items() if key not in AMOUNTS}
    return {**settings, **beside}


def read(
    path: str | Path,
    *,
    flags: Mapping[str, FieldInfo] | None = None,
    paths: Collection[str] = (),
    lists: Collection[str] = (),
) -> RecipeFile:
    """Read a recipe file.

    Args:
        path: The file.
        flags: What it may say beside the fields of `Recipe`, and the field that each sets.
        paths: Those of them that are paths.
        lists: Those of these that may be several.

    Raises:
        RecipeError: It cannot be read, is no TOML, or a key or value is wrong; the sentence names the key and its line.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except OSError as error:
        raise RecipeError(f"the recipe '{path}' cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"the recipe '{path}' is not a text file") from None
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(f"the recipe '{path}' is no TOML: {error}") from None
    written = {key.replace("-", "_"): key for key in content}
    settings = {name: content[key] for name, key in written.items()}
    for name in {*lists} & {*settings}:
        if isinstance(settings[name], str):
            settings[name] = [settings[name]]
    _check(path, text, settings, written, flags or {})
    folder = path.parent.resolve()
    for name in {*paths} & {*settings}:
        named = settings[name] if name in lists else [settings[name]]
        if "" in named:
            key = written[name]
            raise RecipeError(f"{_where(path, text, key)}: {key}: it has to be the name of a file or folder (not '')")
        parts = [_from_folder(folder, part) for part in named]
        settings[name] = parts if name in lists else parts[0]
    return RecipeFile(path, settings)


def save(path: str | Path, settings: Mapping[str, Any], *, paths: Collection[str] = ()) -> None:
    """Write a recipe file that `read` reads back; it appears whole or not at all.

    Args:
        path: Where; an existing file is replaced.
        settings: Values by flag; None is left out.
        paths: Those that are paths: they are written relative to the folder of the file.

    Raises:
        ModelError: It cannot be written.
    """
    path = Path(path)
    lines = ["# onnxprune run " + path.name]
    for name, value in settings.items():
        if value is not None:
            shown = _relative(value, path.resolve().parent) if name in paths else value
            lines.append(f"{name} = {_toml(shown)}")
    write_whole(path, "\n".join(lines) + "\n", "the recipe")


def _from_folder(folder: Path, text: str) -> str:
    """A path of a file as an absolute one; a word that stands for data stays as it is."""
    slash = "/" if text.endswith("/") else ""  # which says that it is a folder
    return text if text == SYNTHETIC else f"{folder / text}{slash}"


def _relative(value: Any, folder: Path) -> Any:
    if str(value) == SYNTHETIC:
        return SYNTHETIC
    if isinstance(value, (list, tuple)):
        return [_relative(part, folder) for part in value]
    slash = "/" if str(value).endswith("/") else ""
    return Path(os.path.relpath(value, folder)).as_posix() + slash


def _check(
    path: Path, text: str, settings: Mapping[str, Any], written: Mapping[str, str], flags: Mapping[str, FieldInfo]
) -> None:
    """Check the names and values of all keys."""
    known = {**flags, **Recipe.model_fields}
    for name, key in written.items():
        if name not in known:
            raise RecipeError(f"{_where(path, text, key)}: there is no setting {_shortened(key)}")
        wrong = _wrong(known[name], settings[name], alone=name not in Recipe.model_fields)
        if wrong:
            raise RecipeError(f"{_where(path, text, key)}: {key}: {wrong}")
    fields = {name: value for name, value in settings.items() if name in Recipe.model_fields}
    try:
        Recipe.model_validate(fields)
    except ValidationError as error:
        problems = error.errors()
        for number, problem in enumerate(problems):
            name = str(problem["loc"][0]) if problem["loc"] else ""
            if name in written:  # one that is missing may still come from a flag or a preset
                inner = _keys(fields[name], problem["loc"][1:])
                where = _where(path, text, *reversed(inner), written[name])
                key = ".".join([written[name], *inner])
                wrong = in_words(of_one_value(problems[number:]), _shortened(problem["input"]))
                raise RecipeError(f"{where}: {key}: {wrong}") from None
    if "preset" in settings:
        try:
            preset(settings["preset"])
        except RecipeError as error:
            raise RecipeError(f"{_where(path, text, 'preset')}: {error}") from None


def _wrong(field: FieldInfo, value: Any, *, alone: bool) -> str:
    """What is wrong with the value of a key; empty where nothing is, or where the whole recipe is to tell.

    Args:
        field: The field that the key sets.
        value: The value.
        alone: Whether it is checked here, and not with the recipe.
    """
    flag = flag_of(field)
    if flag is not None and flag.switch:
        return "" if isinstance(value, bool) else f"it has to be true or false (not {_shortened(value)})"
    if isinstance(value, bool) and _is_number(field.annotation):
        return f"it has to be a number (not {str(value).lower()})"  # for pydantic, true is 1
    if not alone:
        return ""
    try:
        kind: Any = Annotated[field.annotation, field]
        TypeAdapter(kind, config=_FINITE).validate_python(value)
    except ValidationError as error:
        return in_words(of_one_value(error.errors()), _shortened(value))
    return ""


def _is_number(annotation: Any) -> bool:
    return annotation in (int, float) or any(_is_number(part) for part in get_args(annotation))


def _keys(value: Any, place: Sequence[int | str]) -> list[str]:
    """The keys on the way to a place inside a value; pydantic's places also name the types that it tried."""
    keys = []
    for part in place:
        if isinstance(value, Mapping) and part in value:
            keys.append(str(part))
            value = value[part]
    return keys


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _where(path: Path, text: str, *keys: str) -> str:
    """Return ``file, line n``, the line being that of the first key that begins one."""
    for key in keys:
        pattern = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.match(line):
                return f"'{path}', line {number}"
    return f"'{path}'"


def _toml(value: Any) -> str:
    """Return a value as TOML. JSON's texts are TOML's basic strings, but for DEL."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(part) for part in value)}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
