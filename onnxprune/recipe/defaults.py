"""What ``auto`` means for a criterion and an allocation: it depends on what there is to look at."""

from __future__ import annotations

from onnxprune.recipe.recipe import Recipe


def settled(recipe: Recipe, *, calibrated: bool) -> Recipe:
    """Return the recipe with methods in the place of ``auto``.

    With calibration data whole units go by the error that they leave after compensation, and are divided among groups
    by their measured effect on the outputs; whole residual blocks and layers go by how little they turn what they are
    given (magnitude chose halves of a decoder that it cannot do without: benchmarks/decoder.py). A mix of structures is
    ranked by magnitude, single weights too.

    Args:
        recipe: The recipe.
        calibrated: Whether there are calibration data.
    """
    measured = calibrated and recipe.parts.units and not recipe.parts.mixed
    update = {}
    if recipe.criterion == "auto":
        of_blocks = calibrated and (recipe.parts.zeros or recipe.parts.shape).scored == "blocks"
        update["criterion"] = "obc" if measured else "block-influence" if of_blocks else "magnitude"
    if recipe.allocation == "auto" and measured:
        update["allocation"] = "measured"
    return recipe.model_copy(update=update)
