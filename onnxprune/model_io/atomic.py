"""Files that appear whole or not at all: written beside under a name of their own, synced, then renamed.

Inside `together` the renames wait until every file is complete, so that a full disk leaves none of them. A set of files
is named as one (file_set.py), and what killed processes left is removed (temporary.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from onnxprune.errors import ModelError
from onnxprune.model_io import temporary as temporaries
from onnxprune.model_io.file_set import Finished, name_all, tidy
from onnxprune.model_io.stops import held, let_through, unwinding

_waiting: ContextVar[list[Finished] | None] = ContextVar("_waiting", default=None)


@contextmanager
def together() -> Iterator[None]:
    """Files that are published inside get their names at the end, in their order; none does if anything fails before.

    Raises:
        ModelError: A name was taken meanwhile, or the file system refused.
    """
    if _waiting.get() is not None:  # an outer one waits for more files
        yield
        return
    finished: list[Finished] = []
    token = _waiting.set(finished)
    with unwinding(), held():
        try:
            try:
                with let_through():
                    yield
            finally:
                _waiting.reset(token)
            _name_all(finished)
        finally:
            for file in finished:
                temporaries.remove(file.temporary)


def _name_all(finished: list[Finished]) -> None:
    try:
        name_all(finished)
    except FileExistsError as error:
        raise ModelError(f"the output '{error.filename}' exists already: use --force to replace it.") from None
    except OSError as error:
        path = error.filename2 or error.filename
        raise ModelError(f"the output '{path}' cannot be written: {error.strerror or error}.") from error


@contextmanager
def temporary_beside(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new, open file in the folder of `path`, synced at the end, and gone afterwards unless it was renamed.

    The name is random, so that writers of the same path never share a file. Only SIGKILL or a power cut can leave
    the temporary file behind; the next writer in the folder removes it.

    Raises:
        OSError: The file cannot be created, written or synced.
    """
    tidy(path.parent)
    with unwinding(), held():
        temporary, file = temporaries.create(path)
        try:
            with let_through(), file:
                yield temporary, file
        finally:
            if not any(other.temporary == temporary for other in _waiting.get() or ()):
                temporaries.remove(temporary)


def sync(file: IO[bytes]) -> None:
    """Force what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def publish(
    temporary: Path,
    path: Path,
    *,
    replace: bool,
    durable: bool = True,
    mode_of: Path | None = None,
    named_by_content: bool = False,
) -> None:
    """Give a finished file its name, in one step that other processes see whole, and make the step durable.

    Inside `together` this happens at its end. A file that replaces another keeps that one's permissions.

    Args:
        temporary: The file, as `temporary_beside` made it.
        path: Its name from now on.
        replace: Whether an existing file may be replaced.
        durable: Whether a power cut must not take it.
        mode_of: The file whose permissions it gets, by default the one that it replaces.
        named_by_content: Whether a file of that name holds the same bytes.

    Raises:
        FileExistsError: `path` exists and `replace` is false, even if it appeared a moment ago.
        OSError: The file system refused.
    """
    file = Finished(temporary, path, replace, durable, mode_of, named_by_content)
    waiting = _waiting.get()
    if waiting is not None:
        waiting.append(file)
    else:
        with held():
            name_all([file])
