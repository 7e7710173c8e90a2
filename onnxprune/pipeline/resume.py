"""A run without training that was interrupted goes on where it stopped, and ends with the same bytes.

    journal = open_journal(original, recipe, inputs)      of the folder, for this very run

What takes long is kept part by part (model_io/journal.py): what goes in each step (planned.py), and the layers that
recovery fitted (recovery/resumed.py). All else is done anew, in the same order: it follows from these.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.model_io.journal import Journal
from onnxprune.pipeline.checkpoint import fingerprint
from onnxprune.pipeline.run_folder import begin
from onnxprune.pipeline.run_inputs import RunInputs
from onnxprune.pipeline.version import __version__
from onnxprune.recipe.recipe import Recipe


def open_journal(original: ir.Model, recipe: Recipe, inputs: RunInputs) -> Journal:
    """Start a run in its folder, or go on with the one that it holds; a run without a folder keeps nothing.

    Raises:
        RecipeError: The folder holds a run with another model, recipe or other data, or a damaged one.
        ModelError: The disk is full, or the file system refused.
    """
    if inputs.checkpoint is None:
        return Journal()
    run = {
        "version of onnxprune": __version__,
        "recipe": recipe.model_dump(mode="json"),
        "calibration data": None if inputs.samples is None else inputs.samples.digest,
        "model": fingerprint(original, recipe),
    }
    begin(inputs.checkpoint, run, resume=inputs.resume)
    return Journal(inputs.checkpoint)
