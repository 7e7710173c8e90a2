"""Concrete shapes of inner values for given inputs: inferred where onnx can, measured by a run where it gives up."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune import model_io
from onnxprune.errors import DataError, ModelError
from onnxprune.graph.dims import Sizes, candidate_settings, given_settings, is_expression
from onnxprune.graph.inference import infer
from onnxprune.graph.operators import operator_of
from onnxprune.graph.shapes import Facts, infer_at
from onnxprune.runtime.inputs import random_inputs
from onnxprune.runtime.session import make_session, run

Array = npt.NDArray[Any]
Shapes = dict[ir.Value, tuple[int, ...]]

_MOST_SETTINGS = 9  # how many settings of the dynamic dimensions a model is tried with


def concrete_shapes(model: ir.Model, feeds: Mapping[str, Array], needed: Iterable[ir.Value] | None = None) -> Shapes:
    """Shapes of all values under these inputs, those inside If, Loop and Scan bodies too.

    Args:
        model: The model; it stays as it is.
        feeds: Inputs for every graph input.
        needed: Values that are worth a run of the model when inference leaves them open; by default all.

    Returns:
        Shapes by value. Values in bodies that onnx cannot infer are left out.

    Raises:
        ModelError: ONNX Runtime does not load the model, where a run is needed.
        DataError: It does not run these inputs.
    """
    shapes = inferred_shapes(model, feeds)
    wanted = set(needed) if needed is not None else None
    outputs = [value for node in model.graph for value in node.outputs if value.name]
    gaps = [value for value in outputs if value not in shapes and (wanted is None or value in wanted)]
    if gaps:
        shapes.update(probe_shapes(model, feeds, gaps))
    return shapes


def inferred_shapes(model: ir.Model, feeds: Mapping[str, Array]) -> Shapes:
    """Shapes that onnx infers, data of small constants propagated, when the inputs have the shapes of these arrays."""
    proto = model_io.to_skeleton(model)
    for value in proto.graph.input:
        if value.name in feeds:
            _set_shape(value, np.shape(feeds[value.name]))
    for result in proto.graph.output:
        result.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]
    try:
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # the run that follows tells what is wrong, if anything is
        return _known_shapes(model, feeds)
    shapes = _known_shapes(model, feeds)
    _collect(proto.graph, model.graph, shapes)
    return shapes


def known_facts(model: ir.Model, inferred: Facts | None = None) -> Facts:
    """Infer shapes at two settings of the dynamic dimensions; only what onnx leaves open is measured, by a run at each.

    A model that ONNX Runtime does not load or run on made-up inputs keeps its gaps, which is sound: analysis pins what
    it does not know.

    Args:
        model: The model; it stays as it is.
        inferred: What was inferred of it already.
    """
    facts = inferred or infer(model)
    gaps = facts.gaps(model)
    has_bodies = any(operator_of(node).has_body for node in model.graph)
    if not gaps and not facts.failures and not has_bodies:
        return facts
    # Where inference contradicts itself, or branches fit some settings alone, a run tells which setting is right.
    gaps = gaps or list(model.graph.outputs)
    settings = [(facts.first.sizes, facts.second.sizes), *given_settings(model)]
    settings += itertools.islice(candidate_settings(model), _MOST_SETTINGS)
    with contextlib.suppress(ModelError):
        session = _probing_session(model, gaps)
        for setting in settings:
            with contextlib.suppress(DataError):
                measured = [_measure(session, gaps, random_inputs(model, sizes=_free(sizes))) for sizes in setting]
                facts = infer_at(model, *setting)
                facts.fill(*measured)
                break
    return facts


def _free(sizes: Sizes) -> dict[str, int]:
    """The dimensions of a setting that do not follow from others, as ``past + 1`` does."""
    return {name: size for name, size in sizes.items() if not is_expression(name, sizes)}


def probe_shapes(model: ir.Model, feeds: Mapping[str, Array], values: Iterable[ir.Value] | None = None) -> Shapes:
    """Shapes of main-graph values, measured in one run that keeps them all as outputs.

    Args:
        model: The model; it stays as it is.
        feeds: Inputs for every graph input.
        values: What to measure; by default every output of every main-graph node. Values inside If, Loop and Scan
            bodies cannot be measured and are left out.

    Returns:
        Shapes by value: those asked for, and those of inputs and initializers.

    Raises:
        ModelError: ONNX Runtime does not load the model.
        DataError: It does not run these inputs.
    """
    outputs = [value for node in model.graph for value in node.outputs]
    asked = set(values) if values is not None else set(outputs)
    wanted = [value for value in outputs if value.name and value in asked]
    return _known_shapes(model, feeds) | _measure(_probing_session(model, wanted), wanted, feeds)


def _probing_session(model: ir.Model, values: Iterable[ir.Value]) -> ort.InferenceSession:
    return make_session(_with_outputs(model, [str(value.name) for value in values]), optimize="off")


def _measure(session: ort.InferenceSession, values: Iterable[ir.Value], feeds: Mapping[str, Array]) -> Shapes:
    """Run once; tensors only, a sequence has no shape."""
    by_name = {str(value.name): value for value in values}
    arrays = run(session, feeds, by_name)
    return {by_name[name]: array.shape for name, array in arrays.items() if isinstance(array, np.ndarray)}


def _known_shapes(model: ir.Model, feeds: Mapping[str, Array]) -> Shapes:
    shapes: Shapes = {}
    for value in model_io.all_initializers(model):
        if value.const_value is not None:
            shapes[value] = tuple(value.const_value.shape.numpy())
    for value in model.graph.inputs:
        if value.name and value.name in feeds:
            shapes[value] = np.shape(feeds[value.name])
    return shapes


def _collect(proto: onnx.GraphProto, graph: ir.Graph, shapes: Shapes) -> None:
    """Take what was inferred, by name, graph by graph: two branches of an If may use the same names."""
    typed = {info.name: info for info in (*proto.value_info, *proto.output)}
    for written, node in zip(proto.node, graph, strict=True):
        for value in node.outputs:
            shape = _shape_of(typed.get(value.name or ""))
            if shape is not None:
                shapes.setdefault(value, shape)
        for attribute in written.attribute:
            if attribute.HasField("g"):
                _collect(attribute.g, node.attributes[attribute.name].as_graph(), shapes)


def _shape_of(info: onnx.ValueInfoProto | None) -> tuple[int, ...] | None:
    if info is None or not info.type.tensor_type.HasField("shape"):
        return None
    dims = info.type.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)


def _set_shape(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    value.type.tensor_type.ClearField("shape")
    dims = value.type.tensor_type.shape.dim
    for extent in shape:
        dims.add(dim_value=extent)
    if not shape:
        value.type.tensor_type.shape.SetInParent()


def _with_outputs(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy in which the named values are outputs too."""
    copy = model.clone()
    present = {value.name for value in copy.graph.outputs}
    by_name = {value.name: value for node in copy.graph for value in node.outputs}
    for name in names:
        if name not in present:
            copy.graph.outputs.append(by_name[name])
    return copy
