"""The pages of docs/reference, made from the code itself at each build, so that they are always true.

A hook of mkdocs (mkdocs.yml names it); `pages` works without mkdocs.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import typer
from pydantic import BaseModel

import onnxprune
from onnxprune.cli.app import app, register
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.training import DataSettings, TrainSettings
from onnxprune.report.json_schema import PruneOutput


def pages() -> dict[str, str]:
    """Return the Markdown of each page by its path under docs/."""
    return {
        "reference/cli.md": _cli(),
        "reference/recipe.md": _recipe(),
        "reference/api.md": _api(),
        "reference/bridge.md": _bridge(),
        "reference/schema.md": _schema(),
    }


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to the site."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows), ""]


def _cli() -> str:
    """Every command with its arguments and flags, from the Typer app."""
    register()
    group: Any = typer.main.get_command(app)
    lines = ["# Commands and flags", "", "`onnxprune MODEL` is `onnxprune prune MODEL`.", ""]
    for name, command in group.commands.items():
        lines += [f"## onnxprune {name}", "", command.help or "", ""]
        for subject, parameters in _by_subject(command):
            rows = [(f"`{_spelling(p)}`", getattr(p, "help", "") or "", _default(p)) for p in parameters]
            lines += [f"**{subject}**", "", *_table(("", "", "default"), rows)]
    return "\n".join(lines)


def _by_subject(command: Any) -> Iterator[tuple[str, list[Any]]]:
    found: dict[str, list[Any]] = {}
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            subject = "Arguments"
        else:
            subject = getattr(parameter, "rich_help_panel", None) or "Run"
        found.setdefault(subject if command.name == "prune" or subject == "Arguments" else "Flags", []).append(
            parameter
        )
    yield from found.items()


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).upper()
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


def _default(parameter: Any) -> object:
    shown = getattr(parameter, "show_default", False)
    if isinstance(shown, str):
        return shown
    return parameter.default if shown and parameter.default not in (None, "", [], False) else ""


def _recipe() -> str:
    lines = [
        "# Recipe",
        "",
        "The fields of `onnxprune.Recipe`: arguments of `onnxprune.prune`, keys of a recipe file, flags of "
        "`onnxprune prune` (with dashes). A recipe file also takes the other flags as keys: `model`, `output`, "
        "`eval_data`, `report`, ...",
        "",
        *_fields(Recipe),
        "## retrain, retrain_last",
        "",
        *_fields(TrainSettings),
        "## reading",
        "",
        *_fields(DataSettings),
    ]
    return "\n".join(lines)


def _fields(model: type[BaseModel]) -> list[str]:
    rows: list[tuple[object, ...]] = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, ()) or isinstance(default, BaseModel) else repr(default)
        rows.append((f"`{name}`", field.description or "", shown))
    return _table(("field", "", "default"), rows)


def _api() -> str:
    return "\n".join(["# Python", "", inspect.getdoc(onnxprune) or "", "", *_names(onnxprune, onnxprune.__all__)])


def _names(module: ModuleType, names: Sequence[str], level: str = "##") -> Iterator[str]:
    """A section for each name of a module: its signature, its docstring, its members."""
    for name in names:
        thing = getattr(module, name)
        yield from (f"{level} {module.__name__}.{name}", "")
        if callable(thing) and not (inspect.isclass(thing) and issubclass(thing, (Exception, BaseModel))):
            yield from ("```python", f"{name}{inspect.signature(thing)}".replace(", ", ",\n    "), "```", "")
        yield from _text(thing)
        if inspect.isclass(thing) and not issubclass(thing, BaseModel):
            yield from _members(thing)


BRIDGE_EXAMPLE = """\
import torch
from onnxprune import bridge, model_io
from onnxprune.training import apply_masks, masks_of_zeros

pruned = model_io.load("pruned.onnx")
module = bridge.to_torch(pruned)
optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
for _ in range(3):
    loss = module(torch.rand(8, 1, 8, 8)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
trained = apply_masks(bridge.write_back(module, pruned), masks_of_zeros(pruned))
model_io.save(trained, "trained.onnx", force=True)
"""
"""The module, the masks and the way back, for models/digits_resnet.onnx after a cut."""

_MASKS = ("OwnLoop", "masks_of_zeros", "apply_masks", "sparsity_of")
_BESIDE = ("compare_with_runtime", "Mismatch", "intermediate_values", "reexport", "supported_operators", "op")


def _bridge() -> str:
    from onnxprune import bridge, training  # the one part that needs PyTorch

    sections = {
        "The module": ("", bridge, ("to_torch", "OnnxModule", "channels_last")),
        "Masks": (
            "A mask is an array of bool by the name of an initializer: True where a weight stays. They are in "
            "`onnxprune.training`, with `OwnLoop`, which holds them for you "
            "([a loop of your own](../howto/own-loop.md)).",
            training,
            _MASKS,
        ),
        "The way back": ("", bridge, ("write_back",)),
        "Beside them": (f"{len(bridge.supported_operators())} operators are known.", bridge, _BESIDE),
    }
    lines = ["# Bridge to PyTorch", "", inspect.getdoc(bridge) or "", "", "```python", BRIDGE_EXAMPLE.rstrip(), "```"]
    for title, (text, module, names) in sections.items():
        lines += ["", f"## {title}", "", text, "", *_names(module, names, "###")]
    return "\n".join(lines)


def _text(thing: object) -> list[str]:
    return ["```text", inspect.getdoc(thing) or "", "```", ""]


def _members(thing: type) -> list[str]:
    rows: list[tuple[object, ...]] = []
    for name, member in vars(thing).items():
        text = inspect.getdoc(member)
        if not name.startswith("_") and text and (inspect.isfunction(member) or isinstance(member, property)):
            rows.append((f"`{name}`", text.splitlines()[0]))
    return _table(("member", ""), rows) if rows else []


def _schema() -> str:
    text = json.dumps(PruneOutput.model_json_schema(), indent=1)
    return f"# JSON Schema\n\nOf `onnxprune prune --json`; see [JSON output](../json.md).\n\n```json\n{text}\n```\n"
