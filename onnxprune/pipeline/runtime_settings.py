"""config.json and genai_config.json beside a decoder, rewritten for the caches and widths that are left.

Runtimes take the shape of caches from them: optimum from config.json, onnxruntime-genai from genai_config.json. A
number is written where all layers agree on it; where they do not, no number is right, and the file keeps its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune import model_io
from onnxprune.errors import ModelError
from onnxprune.graph.inference import infer
from onnxprune.graph.narrowing import Narrowed
from onnxprune.graph.operators import operator_of
from onnxprune.model_io.atomic import publish, sync, temporary_beside
from onnxprune.model_io.text_files import read_text

FILES = ("config.json", "genai_config.json")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_SIZE = ("head_dim", "head_size")
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", "moe_intermediate_size")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_WIDTH = ("hidden_size", "n_embd", "d_model")


@dataclass(frozen=True)
class Numbers:
    """What the settings of a decoder say; None where layers differ or nothing tells."""

    kv_heads: int | None = None
    size: int | None = None
    heads: int | None = None
    layers: int | None = None


@dataclass(frozen=True)
class Interface:
    """The interface of a narrowed model.

    Attributes:
        narrowed: What the caches kept.
        numbers: What settings files say of the model.
        widths: By extent of the original's matrices, what is left of it.
    """

    narrowed: Narrowed
    numbers: Numbers
    widths: Mapping[int, int]


def interface_of(original: ir.Model, model: ir.Model, narrowed: Narrowed) -> Interface:
    """Return the interface of a narrowed model."""
    return Interface(narrowed, numbers_of(model, narrowed), changed_widths(original, model))


def numbers_of(model: ir.Model, interface: Narrowed) -> Numbers:
    """Return the numbers of a model whose caches were narrowed."""
    layers = interface.layers if interface.gone else None
    return Numbers(_one(interface.heads), _one(interface.size), _one(_query_heads(model)), layers)


def _one(numbers: tuple[int, ...]) -> int | None:
    return numbers[0] if len(set(numbers)) == 1 else None


def _query_heads(model: ir.Model) -> tuple[int, ...]:
    """The heads of queries of each layer: an attribute of attention as one operator, else the scores' heads."""
    told = [node.attributes.get_int(operator_of(node).heads, 0) for node in model.graph if operator_of(node).heads]
    if told and all(told):
        return tuple(told)
    facts = infer(model)
    scores = [node.inputs[0] for node in model.graph if node.op_type == "Softmax" and node.inputs[0] is not None]
    shapes = [(value, facts.shape(value)) for value in scores]
    return tuple(int(shape[1] or 0) for value, shape in shapes if shape and len(shape) == 4 and facts.static(value, 1))


def rewritten(text: str, numbers: Numbers, widths: Mapping[int, int], model_file: str) -> str:
    """Return a settings file for a narrowed model.

    Args:
        text: The file of the original.
        numbers: Of the narrowed model.
        widths: By extent in the original, what is left of the weights' axes of that extent.
        model_file: The name of the model's file.
    """
    settings = json.loads(text)
    genai = isinstance(settings.get("model"), dict) and isinstance(settings["model"].get("decoder"), dict)
    decoder = settings["model"]["decoder"] if genai else settings
    if genai:
        decoder["filename"] = model_file
    old = {name: decoder.get(name) for names in (_HEADS, _WIDTH) for name in names if decoder.get(name)}
    for name in _INNER:
        if name in decoder and decoder[name] is None:  # GPT-2: four times the width, where nothing is said
            decoder[name] = widths.get(4 * _of(decoder, _WIDTH))
    _put(decoder, _INNER, widths.get)
    _put(decoder, _WIDTH, widths.get)
    _put(decoder, _EXPERTS, widths.get)
    _put(decoder, _SIZE, lambda _: numbers.size)
    _put(decoder, _HEADS, lambda _: numbers.heads)
    _put(decoder, _LAYERS, lambda _: numbers.layers)
    _put(decoder, _KV_HEADS, lambda _: numbers.kv_heads)
    _keep_quotient(decoder, old, numbers.size)
    heads, width = (next((old[name] for name in names if name in old), 0) for names in (_HEADS, _WIDTH))
    implied = not any(name in decoder for name in _SIZE) and numbers.size is not None and heads and width
    if implied and _of(decoder, _WIDTH) != numbers.size * _of(decoder, _HEADS):  # type: ignore[operator]
        decoder["head_dim"] = numbers.size
    return json.dumps(settings, indent=4 if genai else 2) + "\n"


def _keep_quotient(settings: dict[str, Any], old: Mapping[str, int], size: int | None) -> None:
    """Keep the number of query heads where width / heads was the head size and would no longer be.

    optimum takes the size of a cache from that quotient, also where the file has a head_dim; the number of query heads
    itself shapes no input.
    """
    name, width = next((n for n in _HEADS if n in old), ""), _of(settings, _WIDTH)
    if name and size and any(n in settings for n in _KV_HEADS) and width // int(settings[name]) != size:
        settings[name] = old[name] if width // old[name] == size else settings[name]


def _of(settings: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((int(settings[name]) for name in names if settings.get(name)), 0)


def _put(settings: dict[str, Any], names: tuple[str, ...], new: Any) -> None:
    for name in names:
        value = new(settings[name]) if isinstance(settings.get(name), int) else None
        if value is not None:
            settings[name] = value


def changed_widths(original: ir.Model, model: ir.Model) -> dict[int, int]:
    """Return, for extents of (stacks of) matrices in the original, the one that all axes of that extent have now."""
    after = {str(v.name): v.const_value.shape.numpy() for v in model_io.all_initializers(model) if v.const_value}
    left: dict[int, set[int]] = {}
    for value in model_io.all_initializers(original):
        shape = value.const_value.shape.numpy() if value.const_value is not None else ()
        is_float = value.dtype is not None and value.dtype.is_floating_point()
        if len(shape) in ((2, 3) if is_float else (2,)) and len(after.get(str(value.name), ())) == len(shape):
            for old, new in zip(shape, after[str(value.name)], strict=True):
                left.setdefault(int(old), set()).add(int(new))
    return {old: next(iter(new)) for old, new in left.items() if len(new) == 1}


def files_beside(source: Path | None) -> list[Path]:
    """Return the settings files beside a model."""
    return [] if source is None else [source.parent / name for name in FILES if (source.parent / name).is_file()]


def write_beside(path: Path, model: ir.Model, interface: Interface, *, force: bool) -> list[Path]:
    """Write the settings files of a narrowed model beside it.

    Args:
        path: Where the model goes.
        model: The narrowed model, which knows the file that it was made from.
        interface: Its interface.
        force: Whether to replace files.

    Raises:
        ModelError: One exists already, belongs to the original, or cannot be written.
    """
    source = model_io.source_of(model)
    files = files_beside(None if source is None else source.path)
    check_beside(path, files, force=force)
    written = []
    for file in files:
        target = path.parent / file.name
        try:
            text = rewritten(read_text(file), interface.numbers, interface.widths, path.name)
            with temporary_beside(target) as (temporary, out):
                out.write(text.encode())
                sync(out)
                publish(temporary, target, replace=force)
        except OSError as error:
            raise ModelError(f"'{target}' cannot be written: {error.strerror or error}.") from error
        except (UnicodeDecodeError, ValueError) as error:
            raise ModelError(f"'{file}' cannot be rewritten, for it is no JSON ({error})") from error
        written.append(target)
    return written


def check_beside(path: Path, files: list[Path], *, force: bool) -> None:
    """Refuse settings files that would replace those of the original, or others without ``--force``.

    Raises:
        ModelError: Names the file.
    """
    for file in files:
        target = path.parent / file.name
        if target.exists() and target.samefile(file):
            raise ModelError(
                f"--resize-io writes '{file.name}' beside the output, and '{file}' is that of the original, which is "
                "never changed: write the model into a folder of its own"
            )
        if target.exists() and not force:
            raise ModelError(f"'{target}' exists already: use --force to replace it, or choose another folder")
