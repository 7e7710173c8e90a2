"""What is known of this machine: its processor, and the folder for what this user's programs can make anew."""

from __future__ import annotations

import os
import platform
import sys
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Return the folder of onnxprune in the user's cache; it need not exist. XDG_CACHE_HOME names another cache."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named) / "onnxprune"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "onnxprune" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "onnxprune"
    return Path.home() / ".cache" / "onnxprune"


def has_amx() -> bool:
    """Say whether the processor multiplies int8 matrices by itself (Intel AMX), as far as Linux tells it."""
    try:
        return "amx_int8" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
