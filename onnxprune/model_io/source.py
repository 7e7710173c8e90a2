"""Where a loaded model came from. It travels with the model, also through `Model.clone`, and is never serialised."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx_ir as ir

_KEY = "onnxprune.source"


@dataclasses.dataclass(frozen=True)
class Source:
    """The files that a model was read from.

    Attributes:
        path: The model file.
        data_files: The external data files it uses, resolved, without duplicates. Empty when the weights are embedded.
    """

    path: Path
    data_files: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that must never be written to."""
        return (self.path, *self.data_files)


def set_source(model: ir.Model, source: Source) -> None:
    """Attach the source to the model."""
    model.graph.meta[_KEY] = source


def source_of(model: ir.Model) -> Source | None:
    """The files the model was read from; None for a model made in memory."""
    source = model.graph.meta.get(_KEY)
    return source if isinstance(source, Source) else None
