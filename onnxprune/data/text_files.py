"""Files of text: .txt, .jsonl (records with `text`), and .jsonl, .csv or .tsv of pairs of sentences with scores."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data import npz
from onnxprune.data.sources import Array
from onnxprune.errors import DataError

SUFFIXES = (".txt", ".jsonl")
TABLES = (".csv", ".tsv")
PAIR = ("sentence1", "sentence2", "score")


def is_text(reference: object) -> bool:
    """Whether a reference names a text that needs a tokenizer."""
    return isinstance(reference, (str, Path)) and Path(reference).suffix.lower() in SUFFIXES


def is_table(reference: object) -> bool:
    """Whether a reference names a table, which may hold pairs of sentences."""
    return isinstance(reference, (str, Path)) and Path(reference).suffix.lower() in TABLES


@dataclass(frozen=True)
class Texts:
    """What a file holds.

    Attributes:
        texts: The texts; of pairs, both sentences of each, one after the other.
        scores: One for each pair; None where the texts are no pairs.
    """

    texts: tuple[str, ...]
    scores: Array | None = None


def read_file(path: Path, *, lines: bool) -> Texts:
    """Read a .txt, .jsonl, .csv or .tsv file.

    Args:
        path: The file.
        lines: Whether each line of a .txt file is a text of its own.

    Raises:
        DataError: It cannot be read, or holds nothing.
    """
    npz.require_file(path)
    try:
        whole = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read as text in UTF-8: {error}.") from error
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        texts = _records(path, list(_objects(path, whole)))
    elif suffix in TABLES:
        rows = csv.DictReader(whole.splitlines(), delimiter="\t" if suffix == ".tsv" else ",")
        texts = _records(path, [(number, dict(row)) for number, row in enumerate(rows, start=2)])
    else:
        texts = Texts(tuple(line.strip() for line in whole.splitlines() if line.strip()) if lines else (whole,))
    if not any(text.strip() for text in texts.texts):
        raise DataError(f"'{path}' is empty: it holds no text.")
    return texts


def is_table_of_pairs(path: Path) -> bool:
    """Whether a table has the columns of pairs of sentences with scores."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return set(PAIR) <= set(header)


def _objects(path: Path, whole: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(whole.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"'{path}', line {number}: this is no JSON ({str(error).splitlines()[0]}).") from None
        if not isinstance(record, dict):
            raise DataError(f'\'{path}\', line {number}: this is no record such as {{"text": "..."}}.')
        yield number, record


def _records(path: Path, records: Sequence[tuple[int, dict[str, Any]]]) -> Texts:
    """The texts of records, or the pairs, which the first record decides."""
    if not records:
        raise DataError(f"'{path}' is empty: it holds no records.")
    pairs = set(PAIR) <= set(records[0][1])
    names = PAIR[:2] if pairs else ("text",)
    texts: list[str] = []
    scores: list[float] = []
    for number, record in records:
        for name in names:
            if not isinstance(record.get(name), str):
                raise DataError(f"'{path}', line {number}: it has no text '{name}'; a record has 'text', or "
                                f"{', '.join(map(repr, PAIR))}.")  # fmt: skip
            texts.append(record[name])
        if pairs:
            scores.append(_score(path, number, record.get(PAIR[2])))
    return Texts(tuple(texts), np.array(scores) if pairs else None)


def _score(path: Path, number: int, value: Any) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"'{path}', line {number}: the score {value!r} is no number.")
    return score
