"""Signals that ask the program to stop: they unwind it, and wait where a file would be left behind.

SIGTERM and SIGHUP end the program through its `finally` clauses instead of at once. SIGINT does so by itself. Inside
`held` a stop waits until the end, so that a new file is never there without the clause that removes it.

    with unwinding(), held():
        temporary = create()        # a stop waits
        try:
            with let_through():     # a stop ends the program here
                write(temporary)
        finally:
            remove(temporary)       # a stop waits
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_DEFAULTS = dict.fromkeys(("SIGTERM", "SIGHUP"), signal.SIG_DFL) | {"SIGINT": signal.default_int_handler}
_HANDLED = {getattr(signal, name): default for name, default in _DEFAULTS.items() if hasattr(signal, name)}


class _Waiting:
    """Whether stops wait, and the first that does."""

    held = False
    number: int | None = None


@contextmanager
def unwinding() -> Iterator[None]:
    """While inside, stops unwind the program. Handlers that somebody else has set stay as they are."""
    if not _is_main_thread():
        yield
        return
    previous = {number: signal.signal(number, _stop) for number in _HANDLED if _is_default(number)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """While inside, stops wait; at the end, the first of them takes effect."""
    with _set(True):
        yield


@contextmanager
def let_through() -> Iterator[None]:
    """While inside, stops take effect although they wait around it; one that waits does so at once."""
    with _set(False):
        yield


@contextmanager
def _set(waits: bool) -> Iterator[None]:
    if not _is_main_thread():  # Python handles signals in the main thread alone
        yield
        return
    before, _Waiting.held = _Waiting.held, waits
    try:
        _stop_now()
        yield
    finally:
        _Waiting.held = before
        _stop_now()


def _stop(number: int, frame: FrameType | None) -> None:
    _Waiting.number = number if _Waiting.number is None else _Waiting.number
    _stop_now()


def _stop_now() -> None:
    """Stop where a signal came and nothing makes it wait."""
    number = _Waiting.number
    if number is None or _Waiting.held:
        return
    _Waiting.number = None
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _is_default(number: int) -> bool:
    return signal.getsignal(number) == _HANDLED[signal.Signals(number)]


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
