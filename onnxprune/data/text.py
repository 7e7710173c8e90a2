"""Text as rows of tokens, fed as a language model wants them: .txt, .jsonl, and pairs of sentences with scores.

A decoder gets texts packed: all tokens in one row after another, each row full. An encoder gets a row for each line or
record, filled up with padding. What else the graph takes (mask, positions, token types, empty caches) is made from the
rows. The package ``tokenizers`` reads tokenizer.json; it is imported when a text is read, not before.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import npz
from onnxprune.data.fit import InputSpec, input_specs
from onnxprune.data.sources import Array, Axes, Batch, batches_of
from onnxprune.data.text_files import Texts, is_table, is_text, read_file
from onnxprune.errors import DataError, RecipeError
from onnxprune.graph.row_length import longest_row
from onnxprune.graph.text_inputs import TextInputs, cache_shape, text_inputs
from onnxprune.recipe.training import DataSettings

_DEFAULT_LENGTH = 128
_MOST_SCORES = 1 << 26  # numbers in the outputs of one batch
_PADS = ("<pad>", "[PAD]", "<|pad|>", "<|endoftext|>", "</s>")
_MASKS = ("[MASK]", "<mask>")


# --- settings


def check_text(settings: DataSettings, references: Iterable[object]) -> None:
    """Refuse texts without a tokenizer, a tokenizer without texts, both where the package is not installed, and the
    column of a table without one.

    Raises:
        RecipeError: The sentence names the flag.
    """
    references = list(references)
    texts = [reference for reference in references if is_text(reference)]
    tables = [reference for reference in references if is_table(reference)]
    if texts and settings.tokenizer is None:
        raise RecipeError(f"'{texts[0]}' is text, which has to be cut into tokens: give --tokenizer tokenizer.json.")
    settable = {"--tokenizer": settings.tokenizer, "--sequence-length": settings.sequence_length}
    told = [flag for flag, value in settable.items() if value is not None]
    if told and not texts and not tables:
        raise RecipeError(f"{told[0]} says how text is read, and no data are a .txt, .jsonl or .csv file.")
    if settings.target is not None and not tables:
        raise RecipeError("--target-column says how a table is read, and no data are a .csv file.")
    if settings.tokenizer is not None:
        _require_tokenizers()


def _require_tokenizers() -> None:
    if importlib.util.find_spec("tokenizers") is None:
        raise RecipeError("--tokenizer needs the package tokenizers, which is not installed: "
                          "pip install 'onnxprune[text]'.")  # fmt: skip


# --- tokens


def load_tokenizer(path: Path) -> Any:
    """Open a tokenizer.json; truncation and padding that it holds are switched off.

    Raises:
        DataError: It cannot be read.
        RecipeError: The package tokenizers is not installed.
    """
    _require_tokenizers()
    from tokenizers import Tokenizer

    npz.require_file(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more exact
        reason = str(error).strip().splitlines()
        raise DataError(f"'{path}' is no tokenizer.json ({reason[0] if reason else type(error).__name__}).") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@dataclass(frozen=True)
class Rows:
    """Rows of tokens: ids, a mask (1 where there is a token) and token types, each [rows, tokens]; targets or None."""

    ids: Array
    mask: Array
    types: Array
    following: Array | None = None


def packed(tokenizer: Any, texts: Sequence[str], length: int, *, following: bool, where: str) -> Rows:
    """Put the tokens of all texts one after the other and cut them into full rows; what is left over goes.

    Raises:
        DataError: They do not fill one row.
    """
    tokens = np.concatenate([np.array(e.ids, np.int64) for e in tokenizer.encode_batch(list(texts))])
    more = int(following)
    count = (len(tokens) - more) // length
    if count < 1:
        raise DataError(f"{where} holds {len(tokens)} tokens, which do not fill one row of {length + more}: give more "
                        "text, or a smaller --sequence-length.")  # fmt: skip
    ids = tokens[: count * length].reshape(count, length)
    targets = tokens[1 : count * length + 1].reshape(count, length) if following else None
    return Rows(ids, np.ones_like(ids), np.zeros_like(ids), targets)


def padded(tokenizer: Any, texts: Sequence[str], length: int, *, fixed: bool) -> Rows:
    """A row for each text, cut to `length` and filled up with padding: to the longest of them, or to `length`."""
    tokenizer.enable_truncation(length)
    encoded = tokenizer.encode_batch(list(texts))
    width = length if fixed else max(1, *(len(e.ids) for e in encoded), 1)
    ids = np.full((len(texts), width), _pad_id(tokenizer), np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for row, e in enumerate(encoded):
        ids[row, : len(e.ids)], types[row, : len(e.ids)], mask[row, : len(e.ids)] = e.ids, e.type_ids, 1
    return Rows(ids, mask, types)


def _pad_id(tokenizer: Any) -> int:
    known = (tokenizer.token_to_id(token) for token in _PADS)
    return next((number for number in known if number is not None), 0)


# --- rows for a model


@dataclass(frozen=True)
class TextRows:
    """A source of rows of tokens; a batch holds all that the graph takes.

    Attributes:
        tokens: The rows.
        inputs: What the inputs are for.
        specs: The inputs in the order in which the graph takes them.
    """

    tokens: Rows
    inputs: TextInputs
    specs: tuple[InputSpec, ...]
    axes: Axes = field(init=False)

    def __post_init__(self) -> None:
        whole = [None if self.inputs.roles[s.name] == "branch" else s.sample_axis for s in self.specs]
        object.__setattr__(self, "axes", tuple(whole))

    @property
    def count(self) -> int:
        return len(self.tokens.ids)

    def rows(self, indices: Array) -> Batch:
        arrays = tuple(self._array(spec, indices) for spec in self.specs)
        following = self.tokens.following
        return Batch(arrays, () if following is None else (following[indices],), self.axes)

    def epoch(self, batch_size: int, order: Array | None = None) -> Iterator[Batch]:
        return batches_of(self, batch_size, order)

    def _array(self, spec: InputSpec, indices: Array) -> Array:
        role = self.inputs.roles[spec.name]
        mask = self.tokens.mask[indices]
        if role == "branch":
            return np.zeros((1,) * len(spec.dims or ()), bool)
        if role == "cache":
            shape = list(cache_shape(spec.value, self.inputs.sizes))
            shape[spec.sample_axis or 0] = len(indices)
            return np.zeros(tuple(shape), spec.dtype or np.float32)
        if role == "mask":
            array = np.concatenate([np.zeros((len(mask), self.inputs.past), mask.dtype), mask], 1)
        elif role == "positions":
            array = np.maximum(mask.cumsum(1) - 1, 0)
        else:
            array = (self.tokens.ids if role == "ids" else self.tokens.types)[indices]
        return array.astype(spec.dtype or array.dtype)


@dataclass(frozen=True)
class TextData:
    """A text read for a model.

    Attributes:
        source: The rows.
        has_targets: Whether each row has the tokens that follow its own.
        metric: What suits it first; None where the model's outputs decide.
        scores: Of pairs, which are rows 2 i and 2 i + 1.
        batch: Rows that are run at once.
    """

    source: TextRows
    has_targets: bool
    metric: str | None
    scores: Array | None
    batch: int


def read_text(reference: str, model: ir.Model, settings: DataSettings) -> TextData:
    """Read a text as rows of tokens for a model.

    Raises:
        DataError: File or tokenizer cannot be read, or do not fit the model.
        RecipeError: No tokenizer was given, or the package is not installed.
    """
    check_text(settings, [reference])
    where, inputs, specs = f"'{reference}'", text_inputs(model), input_specs(model)
    if inputs is None:
        raise DataError(f"{where} is text, and no input of the model takes token ids.")
    for spec in specs:
        role = inputs.roles.get(spec.name)
        if role is None or (role in ("mask", "positions", "types") and len(spec.dims or ()) != 2):
            raise DataError(f"{where} is text, and what the model's input '{spec.name}' is for is not known: give all "
                            "inputs as arrays, in an .npz file.")  # fmt: skip
    assert settings.tokenizer is not None
    tokenizer = load_tokenizer(settings.tokenizer)
    masked = any(tokenizer.token_to_id(token) is not None for token in _MASKS) and not inputs.has_cache
    packs = settings.text == "packed" or (settings.text == "auto" and inputs.following and not masked)
    texts = read_file(Path(reference), lines=not packs)
    packs = packs and texts.scores is None
    length = _length(model, inputs, settings, where)
    if packs:
        rows = packed(tokenizer, texts.texts, length, following=inputs.following and not masked, where=where)
    else:
        rows = padded(tokenizer, texts.texts, length, fixed=inputs.fixed)
    _check_ids(rows.ids, inputs, settings.tokenizer)
    return TextData(TextRows(rows, inputs, specs), rows.following is not None, _metric(inputs, rows, texts),
                    texts.scores, _batch(inputs, rows.ids.shape[1]))  # fmt: skip


def _length(model: ir.Model, inputs: TextInputs, settings: DataSettings, where: str) -> int:
    """Tokens of a row."""
    asked, longest = settings.sequence_length, inputs.longest
    if longest is None:
        most = asked or _DEFAULT_LENGTH
        fitting = longest_row(model, inputs, most)
        longest = fitting if fitting < most else None
    if longest is not None and asked is not None and (asked > longest or (inputs.fixed and asked != longest)):
        has = f"takes rows of {longest} tokens" if inputs.fixed else f"has positions for {longest} tokens"
        raise DataError(f"{where}: --sequence-length {asked} does not fit, since the model {has}.")
    if asked is None:
        return longest if inputs.fixed and longest is not None else min(_DEFAULT_LENGTH, longest or _DEFAULT_LENGTH)
    return asked


def _check_ids(ids: Array, inputs: TextInputs, tokenizer: Path) -> None:
    most = int(ids.max(initial=0))
    if inputs.vocabulary is not None and most >= inputs.vocabulary:
        raise DataError(f"'{tokenizer}' gives the token {most}, and the model knows tokens up to "
                        f"{inputs.vocabulary - 1}: it is the tokenizer of another model.")  # fmt: skip


def _metric(inputs: TextInputs, rows: Rows, texts: Texts) -> str | None:
    if texts.scores is not None:
        return "spearman"
    return "perplexity" if rows.following is not None else "agreement" if inputs.following else "cosine"


def _batch(inputs: TextInputs, length: int) -> int:
    """Rows whose outputs fit well into memory."""
    width = inputs.vocabulary or 1 if inputs.following else 1024
    return max(1, min(64, _MOST_SCORES // (length * width)))
