"""What Python and the C library do with memory that nobody uses: when they look for it, and when they give it back."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
from collections.abc import Callable, Iterator

_OBJECTS = 500_000  # that are made before Python looks for garbage


@contextlib.contextmanager
def few_collections() -> Iterator[None]:
    """Let Python look for garbage less often: next to none is made, and to look through many nodes takes long."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _OBJECTS) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def trim() -> None:
    """Give back pages that hold nothing any more.

    glibc keeps freed pieces of up to 32 MiB, and pieces in use between them keep it from shrinking by itself.
    """
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
        return trim
    return lambda _: None
