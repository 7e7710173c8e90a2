"""From a model whose weights are zero in tiles to one that runs faster: the first step of a delivery.

The model in tiles is compared with the same model with masked weights: that *removed == masked*. Where latency is
measured, the whole model has the last word: it is written in tiles only if it is faster so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import VerificationError
from onnxprune.graph.layers import matrix_axes
from onnxprune.graph.tiles import Tile, tiles_of
from onnxprune.passes import TileLayers
from onnxprune.pipeline.result import Result
from onnxprune.pipeline.trace import by_reason, first_of
from onnxprune.structure.terms import Bools
from onnxprune.verification.proof import prove
from onnxprune.verification.verdict import Verdict

Again = Callable[[ir.Model, Verdict | None], Verdict | None]
"""Verifies a later form of a model, from the verdict on the form before."""


def in_tiles(original: ir.Model, result: Result, again: Again, *, latency: bool) -> Result:
    """Rewrite the layers of a result that run faster in tiles.

    Args:
        original: The model before the run, at whose usual inputs the time of layers is judged.
        result: A result with masks.
        again: Verifies the model once more.
        latency: Whether the two forms are measured against each other.

    Raises:
        VerificationError: The model in tiles does not run, or computes something else.
    """
    assert result.delivery is not None
    model, plain = result.model.clone(), result.model
    feeds = runtime.one_sample(original, seed=result.recipe.seed)
    rewrite = TileLayers(result.masks, runtime.concrete_shapes(model, feeds), runtime.known_facts(model))
    rewrite(model)
    untiled, tiles = dict(rewrite.plain), _tiles(plain, result.masks)
    ratio = _ratio(plain, model, feeds) if latency and rewrite.tiled else 0.0
    if ratio > 1:
        why = f"the whole model takes {ratio:.2f} of the time with its layers in tiles"
        untiled |= dict.fromkeys(rewrite.tiled, why)
    delivery = replace(result.delivery, tiles=tiles, untiled=untiled)
    result = replace(result, delivery=delivery, notes=(*result.notes, *_notes(untiled, len(tiles), feeds)))
    if not rewrite.tiled or ratio > 1:
        return result
    verdict = result.verdict
    if verdict is not None:
        proof = prove(plain, plain, model, seed=result.recipe.seed)
        difference = max(verdict.removed_vs_masked or 0.0, proof.difference)
        verdict = replace(verdict, removed_vs_masked=difference, unproved=verdict.unproved or proof.unproved)
    return replace(result, model=model, verdict=again(model, verdict))


def _ratio(plain: ir.Model, tiled: ir.Model, feeds: runtime.Feeds) -> float:
    """The time of the model in tiles over that of the masked one."""
    return runtime.measure_models(plain, tiled, feeds, settled=True, error=VerificationError).ratio


def _tiles(model: ir.Model, masks: Mapping[str, Bools]) -> dict[str, list[Tile]]:
    """The tiles of each weight that is still there, by its name."""
    tiles = {}
    for name, mask in masks.items():
        value = model.graph.initializers.get(name)
        axes = [matrix_axes(value, node) for node, _ in value.uses()] if value is not None else []
        if axes and axes[0] is not None and not mask.all():
            tiles[name] = tiles_of(mask, axes[0])
    return tiles


def _notes(untiled: Mapping[str, str], count: int, feeds: runtime.Feeds) -> tuple[str, ...]:
    if not untiled:
        return ()
    reasons = [f"{first_of(names)}: {reason}" for reason, names in by_reason(untiled).items()]
    told = f"{len(untiled)} of {count} layers were not rewritten, and their zeros cost as before"
    shapes = ", ".join(f"{name} {list(np.shape(array))}" for name, array in feeds.items())
    return (f"{told}: {'; '.join(reasons)}. Time was judged at {shapes} (--inputs gives others)",)
