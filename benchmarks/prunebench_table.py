"""The results as CSV, one line a result, written as soon as it is there: a run that was cut off goes on behind it."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints


class Key(NamedTuple):
    """What makes a result one of its own.

    Attributes:
        network, data, seed: What was trained, on what, from which random numbers.
        structure: weights, n:m, block:1x4, channels, narrow (a smaller dense network), or none.
        criterion: What goes first; empty where nothing is chosen.
        allocation: How much goes of each layer.
        start: finetune (keep the trained weights), reinit (new weights, trained as long as fine-tuning), scratch (new
            weights, trained as long as dense training and fine-tuning together), or trained (dense, as it came).
        penalty: On the weights of the dense training and the fine-tuning: none, l1 or l2.
        target: The compression ratio aimed at.
    """

    network: str
    data: str
    seed: int
    structure: str
    criterion: str
    allocation: str
    start: str
    penalty: str
    target: int


class Measured(NamedTuple):
    """What was measured. Top-1 accuracies are in percent.

    Attributes:
        kind: dense (also a narrower one), zeros (the graph as it was, weights zeroed) or shrunk (a smaller graph).
        parameters, nonzero, ratio: Of the dense network, what is left, and all / left.
        macs, nonzero_macs, speedup: The same of multiply-adds, for one image.
        top1: After training, on the test set, in ONNX Runtime.
        validation_pruned, validation: After pruning and before any training (nan where nothing was pruned), and after
            training, on the images that picked the best state.
        file_bytes: Of the .onnx file.
        packed_bytes: Of the file with its zeros packed; 0 where there are none.
        latency: ONNX Runtime time over that of the dense network, one thread, 64 images; nan where not measured.
        steps: Of training after pruning.
        seconds: CPU time.
    """

    kind: str
    parameters: int
    nonzero: int
    ratio: float
    macs: int
    nonzero_macs: int
    speedup: float
    top1: float
    validation_pruned: float
    validation: float
    file_bytes: int
    packed_bytes: int
    latency: float
    steps: int
    seconds: float


class Row(NamedTuple):
    """One result."""

    key: Key
    measured: Measured


COLUMNS = (*Key._fields, *Measured._fields)


class Table:
    """The results of one network and data set in a CSV file; a line that was cut off in writing is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Key, Measured] = {}
        if path.exists():
            whole = path.read_text().rpartition("\n")[0]
            self.rows = {row.key: row.measured for row in _parse(whole)}

    def add(self, key: Key, measured: Measured) -> None:
        """Write one more line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            self.path.write_text(",".join(COLUMNS) + "\n")
        with self.path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
            file.seek(0, os.SEEK_END)
            file.write((",".join(map(_text, (*key, *measured))) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows[key] = measured


def read_tables(folder: Path) -> list[Row]:
    """All rows of all tables of a folder."""
    return [Row(*pair) for path in sorted(folder.glob("*.csv")) for pair in Table(path).rows.items()]


def _parse(text: str) -> Iterator[Row]:
    for fields in csv.DictReader(text.splitlines()):
        yield Row(_typed(Key, fields), _typed(Measured, fields))


def _typed(kind: Any, fields: dict[str, str]) -> Any:
    return kind(**{name: _value(of, fields[name]) for name, of in get_type_hints(kind).items()})


def _value(of: type, text: str) -> Any:
    return math.nan if of is float and text == "" else of(text)


def _text(value: str | int | float) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}".rstrip("0").rstrip(".")
    return str(value)
