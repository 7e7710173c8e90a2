"""Memory that was freed goes back to the system, where the C library keeps it for later."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable


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
