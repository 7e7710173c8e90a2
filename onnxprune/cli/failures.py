"""What an exception is told as: a fault of the user's function, of a flag, of the machine, or of onnxprune itself."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

import onnxprune
from onnxprune.model_io import atomic

_OURS = Path(onnxprune.__file__).parent.resolve()
_PASSES = (_OURS.parent / "passes").resolve()  # where the package is used from its repository
_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def sentence_of(error: BaseException) -> str | None:
    """Return what happened in a sentence; None for a stop that was asked for, such as by a signal.

    Raises:
        BaseException: The error itself, where a fault of onnxprune is met and ONNXPRUNE_TRACEBACK asks for it.
    """
    place = _users_place(error)
    if place is not None:
        what = f"calls sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"fails: {_short(error)}"
        return f"the function '{place.name}' ('{place.filename}', line {place.lineno}) {what}"
    if isinstance(error, SystemExit):
        return None
    if isinstance(error, MemoryError):
        return f"there is not enough memory for this run: {error}"
    if isinstance(error, OSError):  # of a name that the file system refuses; what reads and writes has own sentences
        return f"'{str(error.filename)[:200]}': {error.strerror or error}"
    if hasattr(error, "format_message"):  # a flag that Typer could not read; without arguments, the help
        from onnxprune.cli.words import usage  # which brings pydantic: half of the time of --help

        return usage(error)
    if os.environ.get("ONNXPRUNE_TRACEBACK"):
        raise error
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"an error inside onnxprune, {_short(error)} ({Path(last.filename).name}, line {last.lineno}); please report "
        "it with what ONNXPRUNE_TRACEBACK=1 prints"
    )


def _users_place(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost line of code that is neither onnxprune's nor a library's, of those that onnxprune called."""
    frames = list(traceback.extract_tb(error.__traceback__))
    if not frames or Path(frames[-1].filename).resolve() == Path(atomic.__file__).resolve():
        return None  # a signal, which may come at any line
    called = False
    place = None
    for frame in frames:
        path = Path(frame.filename)
        ours = _is_below(path, (_OURS, _PASSES))
        if called and not ours and path.is_file() and not _is_below(path, _LIBRARIES):
            place = frame
        called = called or ours
    return place


def _is_below(path: Path, folders: tuple[Path, ...]) -> bool:
    """Say whether a file lies in a folder; a package in the site of the standard library belongs to it, too."""
    resolved = path.resolve()
    return any(resolved.is_relative_to(folder) for folder in folders)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
