"""Files that appear whole or not at all: written beside under a name of their own, synced, then renamed."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

_STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


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
            temporary.unlink(missing_ok=True)


def sync(file: IO[bytes]) -> None:
    """Force what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def publish(temporary: Path, path: Path, *, replace: bool) -> None:
    """Give a finished file its name, in one step that other processes see whole, and make the step durable.

    Raises:
        FileExistsError: `path` exists and `replace` is false, even if it appeared a moment ago.
        OSError: The file system refused.
    """
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
