"""Rounding of weights to the levels of a block, column by column: what is on the right makes up for each column (GPTQ).

With U as in sparsegpt.py, column j of a row is rounded to the nearest level q, a zero stays one, and

    w_j: -= (w_j - q_j) / U_jj * U_j,j:

(Frantar et al. 2022, GPTQ, eqs. 2 to 4 and algorithm 1.) Levels are those of the quantiser, a scale and a zero point
for each block of inputs. Layers are taken in order, each with the inputs that the rounded ones before it give, and
aim at what the float network puts out there. What does not lower a layer's error on inputs that were held back is not
taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.batches import Inputs
from onnxprune.graph.branches import taken_branch, with_branch_inlined
from onnxprune.graph.linear import Matrix, linear_layers
from onnxprune.graph.packed import Packed, packed
from onnxprune.recovery.fitting import WEIGHTS_AT_ONCE, Layer, but_last
from onnxprune.recovery.methods import propose
from onnxprune.recovery.solve import Affine, parts, squared_error
from onnxprune.recovery.sparsegpt import BLOCK, damped_hessian, inverse_factor
from onnxprune.recovery.streamed import FOLDS, Pair, streamed_moments
from onnxprune.runtime.countdown import Countdown
from onnxprune.runtime.statistics import Moments
from onnxprune.runtime.stream.gather import Batches

Bytes = npt.NDArray[np.uint8]
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Levels:
    """What the numbers of a packed matrix may be.

    Attributes:
        scales, points: Distance of the levels and number of the level that is zero, [outputs, blocks].
        block: Inputs of a block.
        top: Number of the highest level.
    """

    scales: Matrix
    points: Matrix
    block: int
    top: int

    @staticmethod
    def of(layout: Packed) -> Levels:
        """Of a packed matrix."""
        assert layout.scales.const_value is not None
        scales = layout.scales.const_value.numpy().astype(np.float64).reshape(layout.outputs, layout.blocks)
        return Levels(scales, layout.points().astype(np.float64), layout.block, (1 << layout.bits) - 1)

    def nearest(self, column: Matrix, j: int, rows: slice) -> tuple[Matrix, Matrix]:
        """Return for each of some rows the level next to its number in column j, and the number of that level."""
        scale, point = (array[rows, j // self.block] for array in (self.scales, self.points))
        level = np.clip(np.rint(column / np.where(scale != 0, scale, 1.0) + point), 0, self.top)
        return level, (level - point) * scale


def rounded(weight: Matrix, factor: Matrix, levels: Levels) -> tuple[Matrix, Bytes]:
    """Round a matrix; its zeros stay.

    Args:
        weight: Shape [outputs, inputs].
        factor: Of the inputs, from `inverse_factor`.
        levels: The levels.

    Returns:
        The numbers, and the level of each.
    """
    numbers, found = np.empty_like(weight), np.empty(weight.shape, np.uint8)
    for rows in parts(len(weight), max(1, WEIGHTS_AT_ONCE // weight.shape[1])):
        w, support = np.array(weight[rows]), weight[rows] != 0
        for start in range(0, w.shape[1], BLOCK):
            stop = min(start + BLOCK, w.shape[1])
            moved = np.zeros((len(w), stop - start))
            for j in range(start, stop):
                level, number = levels.nearest(np.where(support[:, j], w[:, j], 0.0), j, rows)
                moved[:, j - start] = (w[:, j] - number) / factor[j, j]
                w[:, j:stop] -= np.outer(moved[:, j - start], factor[j, j:stop])
                w[:, j], found[rows, j] = number, level
            w[:, stop:] -= moved @ factor[start:stop, stop:]
        numbers[rows] = w
    return numbers, found


def round_by_samples(
    plain: ir.Model,
    matrices: Sequence[tuple[str, ir.Value, Packed]],
    inputs: Inputs,
    *,
    progress: Callable[[str], None] | None = None,
) -> int:
    """Round the matrices of a quantised model anew, in place, by what the float model reads of some samples.

    Args:
        plain: The float model; it stays as it is.
        matrices: Of the quantised model, as `packed_matrices` tells them: rounded to the nearest level.
        inputs: Samples by input name; at least two batches.
        progress: Called with the name of each layer.

    Returns:
        How many matrices were changed.
    """
    branch = taken_branch(plain, inputs)
    dense, model = (plain.clone() if branch is None else with_branch_inlined(plain, branch) for _ in range(2))
    of_name = {name: (value, layout) for name, value, layout in matrices}
    originals = {layer.name: layer for layer in linear_layers(dense)[0]}
    layers = [x for x in linear_layers(model)[0] if x.name in of_name and x.name in originals]
    pairs = [Pair.of(layer, originals[layer.name], None) for layer in layers]
    count, changed = Countdown("int4: layer", len(pairs), progress or (lambda _: None)), 0
    samples = Batches.of(plain if branch is None else dense, inputs, _BATCH, least=2 * FOLDS)
    for stage in streamed_moments(dense, model, pairs, samples):
        count(len(stage))
        for pair, folds in stage:
            value, layout = of_name[pair.pruned.name]
            assert value.const_value is not None
            numbers = layout.numbers(value.const_value.numpy()).reshape(layout.outputs, -1)
            nearest = numbers[:, : layout.inputs].astype(np.float64)
            new = _better(pair, folds, nearest, Levels.of(layout))
            if new is not None:
                value.const_value = ir.Tensor(_in_bytes(new[1], layout), name=value.name)
                changed += 1
            pair.pruned.write((nearest if new is None else new[0])[None], np.zeros((1, layout.outputs)))
    return changed


def _better(pair: Pair, folds: Sequence[Moments], nearest: Matrix, levels: Levels) -> tuple[Matrix, Bytes] | None:
    """Numbers and levels that are nearer to what the float layer puts out, on inputs that were held back, or none."""
    if not folds or not all(np.isfinite(m.aa).all() and np.isfinite(m.az).all() for m in folds):
        return None
    start = Affine(pair.pruned.matrix(), pair.pruned.bias())
    ones = np.ones(start.bias.shape)
    layer = Layer(pair.pruned, start, start.weight != 0, False, start.weight, start.weight, ones)
    fitted = propose("least-squares", layer, folds)  # what the layers before it lost by rounding
    (weight,) = np.where(layer.support, fitted.affine.weight if fitted.after < fitted.before else start.weight, 0.0)
    (hessian,) = damped_hessian(but_last(folds), centred=False)
    found = rounded(weight, inverse_factor(hessian), levels)
    errors = [float(squared_error(folds[-1], Affine(w[None], start.bias)).sum()) for w in (found[0], nearest)]
    return found if errors[0] < errors[1] else None


def _in_bytes(levels: Bytes, layout: Packed) -> Bytes:
    """Levels [outputs, inputs] as the matrix holds them; what fills up the last block is zero."""
    full = np.repeat(layout.points(), layout.block, axis=1)
    full[:, : layout.inputs] = levels
    return packed(full.reshape(layout.outputs, layout.blocks, layout.block), layout.bits)
