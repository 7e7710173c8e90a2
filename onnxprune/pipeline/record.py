"""The record of a run: enough to rebuild the pruned model from the original, or to check it later."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError, field_validator
from pydantic_core import PydanticSerializationError

from onnxprune.errors import DataError
from onnxprune.model_io import strict_json
from onnxprune.model_io.text_files import read_text, write_whole

FORMAT = "onnxprune-record/1"


class FileId(BaseModel):
    """A file and the hash of its content (of its external data too)."""

    model_config = ConfigDict(extra="forbid")
    file: str | None = None
    sha256: str | None = None


class RecordedTile(BaseModel):
    """Some outputs of a layer, and the inputs that they read."""

    model_config = ConfigDict(extra="forbid")
    outputs: list[NonNegativeInt]
    inputs: list[NonNegativeInt]


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
        tiles: The tiles of each weight that has some, by its name: the weights that no tile reads are zero.
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
    tiles: dict[str, list[RecordedTile]] = {}
    figures: dict[str, Any]

    @field_validator("kept")
    @classmethod
    def _are_indices(cls, kept: dict[str, dict[str, list[int]]]) -> dict[str, dict[str, list[int]]]:
        for axes in kept.values():
            for axis, indices in axes.items():
                rising = all(a < b for a, b in itertools.pairwise(indices))
                if (
                    not (axis.isascii() and axis.isdecimal() and len(axis) < 3)
                    or not rising
                    or min(indices, default=0) < 0
                ):
                    raise ValueError("an axis counts from 0, and its indices rise from 0 on")
        return kept

    def as_text(self) -> str:
        """Return the record as JSON; the path of a file may hold bytes that are no text, which are escaped."""
        try:
            return self.model_dump_json(indent=1)
        except PydanticSerializationError:
            return strict_json.dumps(self.model_dump())[0]

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, whole or not at all.

        Raises:
            ModelError: It cannot be written.
        """
        write_whole(Path(path), self.as_text() + "\n", "the record")


def load_record(path: str | Path) -> Record:
    """Read a record.

    Raises:
        DataError: The file is missing, no JSON, or no record of a version that is known here.
    """
    try:
        content = json.loads(read_text(Path(path)))
    except OSError as error:
        raise DataError(f"the record '{path}' cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):  # no UTF-8, no JSON, or nested deeper than any record
        raise DataError(f"the record '{path}' is not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"'{path}' is not a record of format {FORMAT}")
    try:
        return Record(**content)
    except ValidationError as error:
        where = ".".join(str(p) for p in error.errors()[0]["loc"])
        raise DataError(f"the record '{path}' is damaged at {where!r}") from None
