"""Which units a layer reads: the outputs of one layer before it, behind an activation that only scales with them.

Neuron merging rests on f(s x) = s f(x) for s > 0 on the way from a unit to its consumer. That holds for ReLU,
leaky ReLU, pooling and moves, and for nothing that adds, shifts, saturates or mixes units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.linear import Linear, Matrix, linear_layers
from onnxprune.graph.operators import operator_named, operator_of
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.structure import Structure


@dataclass(frozen=True, eq=False)
class Units:
    """The units that a layer reads, by number.

    Attributes:
        filters: Their incoming weights as they act, shape [units, inputs].
        shifts: What is added to each before the activation, shape [units].
        columns: For each, the indices along the consumer's input axis that it feeds, in the order of its places.
        batchnorm: Whether a BatchNormalization lies between the weights and the activation.
    """

    filters: Matrix
    shifts: Matrix
    columns: tuple[npt.NDArray[np.int64], ...]
    batchnorm: bool


def units_read_by(structure: Structure, consumer: Linear) -> Units | str:
    """Return the units that a layer of the structure's model reads, or why they cannot stand in for each other."""
    if consumer.groups != 1:
        return "it is a grouped convolution"
    way = _way_to_producer(structure, consumer.data)
    if isinstance(way, str):
        return way
    producer, between = way
    affine = _fold(producer, between)
    if isinstance(affine, str):
        return affine
    filters, shifts, batchnorm = affine
    columns = _columns(structure, producer, consumer)
    if columns is None:
        return "its inputs are not the outputs of one layer, each by itself"
    rows = np.array([row for row, _ in columns])
    return Units(filters[rows], shifts[rows], tuple(c for _, c in columns), batchnorm)


def _way_to_producer(structure: Structure, value: ir.Value) -> tuple[Linear, list[ir.Node]] | str:
    """Walk back from a value to the layer that makes it: that layer, and the nodes behind it in order."""
    layers = {x.output: x for x in linear_layers(structure.model)[0]}
    between: list[ir.Node] = []
    while value not in layers:
        node = value.producer()
        if node is None:
            return "its inputs are those of the model"
        operands = [v for v in node.inputs if v is not None]
        data = [v for v in operands if v.const_value is None]
        shifted = node.op_type == "Add" and len(data) == 1
        if not (shifted or operator_of(node).homogeneous or node.op_type == "BatchNormalization"):
            return f"{node.op_type} before it does not only scale its inputs"
        between.insert(0, node)
        value = data[0] if shifted else operands[0]
    return "its inputs come from a grouped convolution" if layers[value].groups != 1 else (layers[value], between)


def _fold(producer: Linear, between: list[ir.Node]) -> tuple[Matrix, Matrix, bool] | str:
    """Fold what is affine behind a layer into its weights: a bias, a BatchNormalization. The rest must be neither."""
    (filters,), (shifts,) = producer.matrix(), producer.bias()
    batchnorm, activated = False, bool(producer.activation)
    if activated and not operator_named(producer.activation).homogeneous:
        return f"{producer.activation} before it does not only scale its inputs"
    for node in between:
        constants = [v.const_value.numpy().astype(np.float64) for v in node.inputs if v is not None and v.const_value]
        vectors = all(c.size in (1, len(shifts)) for c in constants)
        if node.op_type == "Add" and not activated and vectors:
            shifts = shifts + constants[0].reshape(-1)
        elif node.op_type == "BatchNormalization" and not activated and vectors and len(constants) == 4:
            gamma, beta, mean, variance = constants
            scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
            filters, shifts, batchnorm = filters * scale[:, None], (shifts - mean) * scale + beta, True
        elif operator_of(node).homogeneous:
            activated = True
        else:
            return f"{node.op_type} before it does not only scale its inputs"
    return filters, shifts, batchnorm


def _columns(
    structure: Structure, producer: Linear, consumer: Linear
) -> list[tuple[int, npt.NDArray[np.int64]]] | None:
    """Return (row of the producer, columns of the consumer) for each unit that feeds columns of its own."""
    outputs = structure.axes[producer.weight][producer.output_axis]
    inputs = structure.axes[consumer.weight][consumer.input_axis]
    if isinstance(outputs, Dynamic) or isinstance(inputs, Dynamic):
        return None
    rows, row_atoms = structure.members(outputs)
    places, place_atoms = structure.members(inputs)
    chosen = []
    for row, atom in zip(rows.tolist(), row_atoms.tolist(), strict=True):
        if np.count_nonzero(row_atoms == atom) == 1:
            chosen.append((row, np.sort(places[place_atoms == atom])))
    chosen = [(row, columns) for row, columns in chosen if len(columns)]
    alike = len({len(columns) for _, columns in chosen}) == 1
    return chosen if alike else None
