"""Criteria of residual blocks: what the model loses when y = x + f(x) becomes y = x.

Two look at calibration inputs. Any other criterion that gives weights a saliency scores a block too: by the sum over
the weights that go with it. Selection ranks blocks by score per parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.batches import Inputs, batches
from onnxprune.errors import RecipeError
from onnxprune.graph.branches import BRANCHES, branches_of, taken_branch, with_branch_inlined
from onnxprune.graph.edit import Editor
from onnxprune.graph.operators import operator_of
from onnxprune.passes.remove_blocks import MaskBlocks
from onnxprune.runtime.statistics import row_cosines
from onnxprune.runtime.stream.apart import Apart
from onnxprune.scoring.registry import Context, Criterion, block_criterion
from onnxprune.structure.blocks import ResidualBlock
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight


@block_criterion(
    "block-influence",
    needs="calibration",
    source="Men et al. 2024, ShortGPT, eq. 1 (over samples in the place of tokens)",
    cost="one pass over the calibration data",
)
def influence(structure: Structure, blocks: Sequence[ResidualBlock], context: Context) -> npt.NDArray[np.float64]:
    """1 - E[cos(x, x + f(x))]: how far a block turns what it is given."""
    feeds = batches(structure.model, context.evidence.inputs, context.evidence.batch)
    model, seen = _as_run(structure.model, blocks, context.evidence.inputs)
    pairs = [(str(b.trunk.name), b.name) for b in seen]
    return np.maximum(1 - row_cosines(model, pairs, feeds), 0.0)


@block_criterion(
    "block-output",
    needs="calibration",
    source="Kim et al. 2024, Shortened LLaMA, section 3.2 (by the outputs' error in the place of perplexity)",
    cost="one pass over the calibration data for each block",
)
def output_change(structure: Structure, blocks: Sequence[ResidualBlock], context: Context) -> npt.NDArray[np.float64]:
    """|y - y_without|^2 / |y|^2 of the model's outputs when the block alone is gone; a detector's as in `Apart`."""
    model = structure.model
    apart = Apart(model, batches(model, context.evidence.inputs, context.evidence.batch))
    return np.array([apart.of(without_block(model, block)) for block in blocks])


def score_blocks(
    structure: Structure, blocks: Sequence[ResidualBlock], weights: Sequence[Weight], criterion: Criterion, seed: int
) -> npt.NDArray[np.float64]:
    """Score residual blocks; shape (blocks,).

    Args:
        structure: The analysis.
        blocks: The blocks.
        weights: The weights that the criterion has saliencies for.
        criterion: The criterion.
        seed: Of what it draws at random.
    """
    rng = np.random.default_rng(seed)
    if criterion.blocks is not None:
        return criterion.blocks(structure, blocks, criterion.context(rng))
    total = {w.value: float(criterion.saliency(w, rng).sum(dtype=np.float64)) for w in weights}
    return np.array([sum(total.get(v, 0.0) for v in block.weights) for block in blocks])


def without_block(model: ir.Model, block: ResidualBlock) -> ir.Model:
    """Return a copy in which a block adds the number zero."""
    copy = model.clone()
    graphs = {model.graph: copy.graph}
    for node, twin in zip(model.graph, copy.graph, strict=True):
        graphs.update(zip(branches_of(node), branches_of(twin), strict=True))
    for part in block.everywhere:
        assert isinstance(part.add.graph, ir.Graph)
        nodes = graphs[part.add.graph]
        (add,) = (node for node in nodes if any(out.name == part.name for out in node.outputs))
        if operator_of(add).sum_output is not None:  # a fused sum takes no single number
            MaskBlocks([replace(part, add=add, others=())])(copy)
            continue
        dtype = part.trunk.dtype or ir.DataType.FLOAT
        zero = Editor(copy).constant(np.zeros((), dtype.numpy()), f"{part.name}_zero")
        add.replace_input_with(part.branch, zero)
    return copy


def _as_run(
    model: ir.Model, blocks: Sequence[ResidualBlock], inputs: Inputs
) -> tuple[ir.Model, Sequence[ResidualBlock]]:
    """The model with the branch inlined that inputs take, and the blocks as they are there.

    Raises:
        RecipeError: Blocks lie in branches, and the inputs do not tell which one runs.
    """
    if not any(block.others for block in blocks):
        return model, blocks
    branch = taken_branch(model, inputs)
    if branch is None:
        raise RecipeError("--criterion block-influence: the samples do not all take the same branch of the If")
    place = BRANCHES.index(branch)
    return with_branch_inlined(model, branch), [b.everywhere[place] if b.others else b for b in blocks]
