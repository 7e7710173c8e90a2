"""The errors a user can meet. Each message is one sentence that names the file, node or flag and says what to do.

The command line prints the message and leaves with the error's exit status; the Python API raises it.
"""

from __future__ import annotations

from typing import Any


class OnnxPruneError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        exit_status: What the command line exits with: 2 for bad input, 1 for a limit or verification that failed.
    """

    exit_status = 2


class ModelError(OnnxPruneError):
    """The model file cannot be read, written, or worked with."""


class RecipeError(OnnxPruneError):
    """A flag, recipe key or Python argument is wrong."""


class DataError(OnnxPruneError):
    """Calibration, training or evaluation data do not fit the model."""


class VerificationError(OnnxPruneError):
    """The result was measured and does not hold what was promised; no model was written.

    Attributes:
        result: What was measured, a `Result`, where the run came to its end and only a limit or the proof failed.
    """

    exit_status = 1
    result: Any = None


class NothingToPrune(OnnxPruneError):
    """The model has no prunable parameters under this recipe."""

    exit_status = 1
