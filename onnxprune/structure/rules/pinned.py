"""Operators that are pinned on purpose, with the reason that users see."""

from __future__ import annotations

from onnxprune.structure.rules import pinned
