"""Recovery of a whole model that needs no data: merging of units, and biases from what a BatchNormalization tells."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.following import dense_to_pruned
from onnxprune.graph.linear import linear_layers
from onnxprune.recovery.expected import expected_inputs
from onnxprune.recovery.merging import merge_units
from onnxprune.recovery.reconstruct import State, Step, by_output, differs, left_of
from onnxprune.recovery.registry import model_method
from onnxprune.runtime.probe import known_facts
from onnxprune.structure.analysis import analyse


@model_method("merge", needs="nothing", judge="none", source="Kim et al. 2020, Neuron Merging, section 3.2 and eq. 6")
def _merge(run: State, method: str) -> None:
    """W[:, j] += |f_i| / |f_j| W[:, i] for a removed unit i and the unit j most like it."""
    done = merge_units(run.dense, run.pruned, run.kept)
    run.skipped.update(done.skipped)
    for name, lost in done.lost.items():
        merged = done.merged[name]
        run.steps.append(Step(name, method, None, None, merged > 0, f"{merged} of {lost} units merged"))


@model_method(
    "expected-bias",
    needs="nothing",
    judge="none",
    source="Nagel et al. 2019, Data-Free Quantization, section 4.2.1",
)
def _correct_expected(run: State, method: str) -> None:
    """b += (W_dense - W_pruned) E[x], E[x] behind a BatchNormalization from its scale and shift."""
    structure, originals = analyse(run.dense, known_facts(run.dense)), by_output(run.dense)
    for layer in linear_layers(run.pruned)[0]:
        original = originals.get(str(layer.output.name))
        if original is None or not differs(original, layer, run.kept):
            continue
        means = expected_inputs(structure, original)
        if isinstance(means, str) or layer.shift is None:
            run.skipped[layer.name] = means if isinstance(means, str) else "there is no place for a bias"
            continue
        axes = run.kept.get(layer.name, {})
        rows = {axis: indices for axis, indices in axes.items() if axis == layer.output_axis}
        dense = original.to_matrix(left_of(original, rows)).astype(np.float64) * original.scale
        left = means[axes[layer.input_axis]] if layer.input_axis in axes else means
        factor, offset = dense_to_pruned(original, layer, rows.get(layer.output_axis))
        kept_bias = original.bias().reshape(-1)[rows.get(layer.output_axis, slice(None))].reshape(factor.shape)
        target = factor * (dense @ np.repeat(means, original.places) + kept_bias) + offset
        change = target - layer.matrix() @ np.repeat(left, layer.places) - layer.bias()
        layer.write(layer.matrix(), change)
        run.steps.append(Step(layer.name, method, None, None, True))
