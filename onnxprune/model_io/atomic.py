"""Files that appear whole or not at all: written beside under a name of their own, synced, then renamed.

Inside `together` the renames wait until every file is complete, so that a full disk leaves none of them.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple

from onnxprune.errors import ModelError

_STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Finished(NamedTuple):
    """A complete file that waits for its name."""

    temporary: Path
    path: Path
    replace: bool


_waiting: ContextVar[list[_Finished] | None] = ContextVar("_waiting", default=None)


@contextmanager
def together() -> Iterator[None]:
    """Files that are published inside get their names at the end, in their order; none does if anything fails before.

    Raises:
        ModelError: A name was taken meanwhile, or the file system refused.
    """
    if _waiting.get() is not None:  # an outer one waits for more files
        yield
        return
    finished: list[_Finished] = []
    token = _waiting.set(finished)
    try:
        with _stop_signals_unwind():
            try:
                yield
            finally:
                _waiting.reset(token)
            for file in finished:
                _publish_finished(file)
    finally:
        for file in finished:
            file.temporary.unlink(missing_ok=True)


def _publish_finished(file: _Finished) -> None:
    try:
        publish(file.temporary, file.path, replace=file.replace)
    except FileExistsError:
        raise ModelError(f"the output '{file.path}' exists already: use --force to replace it.") from None
    except OSError as error:
        raise ModelError(f"the output '{file.path}' cannot be written: {error.strerror or error}.") from error


@contextmanager
def temporary_beside(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new, open file in the folder of `path`, synced at the end, and gone afterwards unless it was renamed.

    The name is random, so that writers of the same path never share a file. Only SIGKILL or a power cut can leave
    the temporary file behind.

    Raises:
        OSError: The file cannot be created, written or synced.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with _stop_signals_unwind():
        file = temporary.open("xb")
        try:
            with file:
                yield temporary, file
        finally:
            if not any(other.temporary == temporary for other in _waiting.get() or ()):
                temporary.unlink(missing_ok=True)


def sync(file: IO[bytes]) -> None:
    """Force what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def publish(temporary: Path, path: Path, *, replace: bool) -> None:
    """Give a finished file its name, in one step that other processes see whole, and make the step durable.

    Inside `together` this happens at its end.

    Raises:
        FileExistsError: `path` exists and `replace` is false, even if it appeared a moment ago.
        OSError: The file system refused.
    """
    waiting = _waiting.get()
    if waiting is not None:
        waiting.append(_Finished(temporary, path, replace))
        return
    if replace:
        os.replace(temporary, path)
    else:
        _rename_new(temporary, path)
    _sync_folder(path.parent)


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename without replacing: a hard link fails if the name is taken, where a rename would overwrite."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # file systems without hard links
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(temporary, path)
    else:
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; systems that cannot open folders do that by themselves."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


@contextmanager
def _stop_signals_unwind() -> Iterator[None]:
    """While inside, SIGTERM and SIGHUP end the program through its `finally` clauses instead of at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {s: signal.signal(s, stop) for s in _STOP_SIGNALS if signal.getsignal(s) == signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
