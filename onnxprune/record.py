"""The record of a run: enough to rebuild the pruned model from the original, or to check it later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, ValidationError

from onnxprune.errors import DataError, ModelError
from onnxprune.model_io.atomic import publish, sync, temporary_beside
from onnxprune.passes.normalise import COPY_OF
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools

FORMAT = "onnxprune-record/1"


class FileId(BaseModel):
    """A file and the hash of its content (of its external data too)."""

    model_config = ConfigDict(extra="forbid")
    file: str | None = None
    sha256: str | None = None


class Record(BaseModel):
    """What was done to a model.

    Attributes:
        format: Name and version of this layout.
        source: The original.
        output: The pruned model.
        recipe: The settings of the run.
        kept: For each constant of the source that lost something, the kept indices of each axis that did.
        renamed: For each constant of the output that is a copy, the constant of the source it was copied from.
        blocks: Residual blocks that went, by the names of their sums in the source.
        figures: What was measured.
    """

    model_config = ConfigDict(extra="forbid")

    format: str = FORMAT
    source: FileId
    output: FileId
    recipe: dict[str, Any]
    kept: dict[str, dict[str, list[int]]]
    renamed: dict[str, str]
    blocks: list[str] = []
    figures: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, whole or not at all.

        Raises:
            ModelError: It cannot be written.
        """
        try:
            with temporary_beside(Path(path)) as (temporary, file):
                file.write(self.model_dump_json(indent=1).encode() + b"\n")
                sync(file)
                publish(temporary, Path(path), replace=True)
        except OSError as error:
            raise ModelError(f"the record '{path}' cannot be written: {error.strerror or error}.") from error


def load_record(path: str | Path) -> Record:
    """Read a record.

    Raises:
        DataError: The file is missing, no JSON, or no record of a version that is known here.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"the record '{path}' cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise DataError(f"the record '{path}' is not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"'{path}' is not a record of format {FORMAT}")
    try:
        return Record(**content)
    except ValidationError as error:
        where = ".".join(str(p) for p in error.errors()[0]["loc"])
        raise DataError(f"the record '{path}' is damaged at {where!r}") from None


def removed_atoms(structure: Structure, kept: Mapping[str, Mapping[str, list[int]]]) -> Bools:
    """Return which atoms must go so that exactly the recorded indices are kept. Shape (number of ids,).

    Raises:
        DataError: The record does not fit the model.
    """
    by_name = {str(v.name): v for v in structure.sources}
    gone = np.zeros(structure.terms.count, bool)
    stays = np.zeros(structure.terms.count, bool)
    for value in structure.sources:
        axes = kept.get(str(value.name), {})
        for axis in range(len(structure.axes[value])):
            ids = structure.ids(value, axis)
            if ids is None:
                continue
            rows, atoms = structure.terms.members(ids)
            flags = np.ones(len(ids), bool)
            if str(axis) in axes:
                flags[:] = False
                flags[_indices(axes[str(axis)], len(ids), str(value.name))] = True
            gone[atoms[~flags[rows]]] = True
            stays[atoms[flags[rows]]] = True
    removed: Bools = gone & ~stays
    found = structure.keep(removed).lost()
    for name, recorded in kept.items():
        if name not in by_name:
            raise DataError(f"the record names the weight {name!r}, which the model does not have")
        for place, indices in recorded.items():
            cut = found.get(by_name[name], {}).get(int(place))
            if cut is None or not np.array_equal(np.flatnonzero(cut), indices):
                raise DataError(f"the record keeps indices of {name!r} that this model cannot be cut to")
    return removed


def _indices(indices: list[int], extent: int, name: str) -> list[int]:
    if any(not 0 <= i < extent for i in indices):
        raise DataError(f"the record keeps indices of {name!r} beyond its extent {extent}")
    return indices


def renamed_copies(model: ir.Model) -> dict[str, str]:
    """Return the copies that normalising a model left in it, with the names of their sources."""
    return {
        str(v.name): v.metadata_props[COPY_OF]
        for graph in (model.graph, *model.graph.subgraphs())
        for v in graph.initializers.values()
        if COPY_OF in v.metadata_props
    }
