"""``-`` in the place of a file: a model from standard input, a model to standard output."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxprune.cli.console import console
from onnxprune.errors import ModelError, OnnxPruneError, RecipeError

STREAM = Path("-")


@contextmanager
def from_standard_input(model: Path) -> Iterator[Path]:
    """Give the path of a model: a temporary file with what standard input holds, where the model is ``-``.

    Raises:
        ModelError: Standard input holds nothing.
    """
    if model != STREAM:
        yield model
        return
    content = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    if not content:
        raise ModelError("standard input holds no model: pipe an .onnx file into it, or name a file")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "standard-input.onnx"
        file.write_bytes(content)
        try:
            yield file
        except OnnxPruneError as error:
            error.args = (str(error).replace(f"'{file}'", "standard input"),)
            raise


@contextmanager
def to_standard_output(output: Path | None, *, json: bool) -> Iterator[Path | None]:
    """Give the path to write a model to: a temporary file that goes to standard output at the end, for ``-``.

    What people read goes to standard error meanwhile.

    Raises:
        RecipeError: JSON is asked for as well, or standard output is a terminal.
        ModelError: The model has external data, which a stream cannot hold.
    """
    if output != STREAM:
        yield output
        return
    if json:
        raise RecipeError("--json and -o - would both write to standard output: name a file for one of them")
    if sys.stdout.isatty():
        raise RecipeError("-o -: standard output is a terminal: pipe it into a file or a program")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "standard-output.onnx"
        console.stderr = True
        try:
            yield file
        finally:
            console.stderr = False
        if len(list(file.parent.iterdir())) > 1:
            raise ModelError("-o -: the model has external data, which standard output cannot hold: name a file")
        if file.is_file():
            sys.stdout.buffer.write(file.read_bytes())
            sys.stdout.buffer.flush()
