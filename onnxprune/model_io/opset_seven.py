"""From operator set 6 to 7: the step in which operators learned to broadcast as numpy does.

Until opset 6 an operand was laid along the axes of the other by attributes: `broadcast=1` lines its axes up with the
last ones, or with those from `axis` on (https://onnx.ai/onnx/operators/text_diff_Add_6_7.html). A PRelu slope [C] held
one number for each channel, which is axis 1. onnx's version converter gets both wrong (onnx 1.22: it lays a bias along
the batch axis, a slope along the last one, and gives up where it does not know a shape), so that this step is our own.

An operand that must move gets an Unsqueeze; initializers stay as they are.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import onnx
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.model_io import protobuf

_CHANNELS = 1  # the axis of the channels in every ONNX layout


def lift_to_seven(proto: onnx.ModelProto, name: str) -> None:
    """Rewrite a model of opset 6 as one of opset 7, in place; `name` is what messages call it.

    Raises:
        ModelError: An operand must move to an axis, but nothing tells how many axes the other has; or a node computes
            something that opset 7 does not know.
    """
    ranks = _ranks(proto)
    used = _names(proto)
    for graph in list(protobuf.graphs(proto)):
        for position in reversed(range(len(graph.node))):
            node = graph.node[position]
            if node.domain not in ("", "ai.onnx"):
                continue
            axes = _axes_to_add(node, ranks, name)
            if axes:
                moved = _fresh(f"{node.input[1]}_moved", used)
                unsqueeze = helper.make_node("Unsqueeze", [node.input[1]], [moved], name=moved, axes=axes)
                node.input[1] = moved
                graph.node.insert(position, unsqueeze)
            _drop_old_attributes(graph.node[position + bool(axes)], name)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = 7


def _axes_to_add(node: onnx.NodeProto, ranks: dict[str, int], name: str) -> list[int]:
    """The axes that the second operand lacks, counted in its new shape; none where it lines up already."""
    if node.op_type == "PRelu":
        first = _CHANNELS
        if ranks.get(node.input[1]) != 1:
            return []  # a shape that has been written for numpy's rule, or a single number
    elif _lines_up(node) and _integer(node, "broadcast") and _has(node, "axis"):
        first = _integer(node, "axis")
    else:
        return []
    rank, moving = ranks.get(node.input[0]), ranks.get(node.input[1])
    if moving == 0:
        return []
    if rank is None or moving is None:
        unknown = node.input[0] if rank is None else node.input[1]
        raise ModelError(
            f"'{name}' is of an opset older than 7, and node '{node.name or node.output[0]}' ({node.op_type}) lays "
            f"'{node.input[1]}' along an axis of '{node.input[0]}', but the number of axes of '{unknown}' is unknown: "
            "export the model again with a newer opset."
        )
    behind = rank - (first % rank if rank else 0) - moving
    if behind < 0:
        raise ModelError(
            f"'{name}' is not a valid ONNX graph: node '{node.name or node.output[0]}' ({node.op_type}) lays "
            f"{moving} axes along {rank} axes, from axis {first} on."
        )
    return list(range(moving, moving + behind))


def _drop_old_attributes(node: onnx.NodeProto, name: str) -> None:
    """Take away what opset 7 no longer has, and write Upsample's factors as one list."""
    gone = _dropped(node.op_type)
    if node.op_type == "BatchNormalization":
        if not _integer(node, "is_test") and len([output for output in node.output if output]) > 1:
            raise ModelError(
                f"'{name}': node '{node.name or node.output[0]}' (BatchNormalization) puts out the statistics of "
                "training: export the model for inference."
            )
    elif node.op_type == "Upsample" and _has(node, "height_scale"):
        factors = [1.0, 1.0, _number(node, "height_scale"), _number(node, "width_scale")]
        node.attribute.append(helper.make_attribute("scales", factors))
    for attribute in [a for a in node.attribute if a.name in gone]:
        node.attribute.remove(attribute)


@functools.cache
def _dropped(op_type: str) -> frozenset[str]:
    """The attributes that an operator has in opset 6 and no longer in opset 7; they change nothing at inference.

    Gemm's `broadcast` is among them: C is laid along the last axes in both.
    """
    try:
        old, new = (onnx.defs.get_schema(op_type, version, "") for version in (6, 7))
    except onnx.defs.SchemaError:  # of later opsets, or none of ONNX
        return frozenset()
    return frozenset(old.attributes) - frozenset(new.attributes)


def _lines_up(node: onnx.NodeProto) -> bool:
    """Whether attributes say along which axes of the first operand the second one lies."""
    return {"axis", "broadcast"} <= _dropped(node.op_type)


@functools.cache
def _gives_truths(op_type: str) -> bool:
    (output,) = onnx.defs.get_schema(op_type, 6, "").outputs
    return set(output.types) == {"tensor(bool)"}


def _ranks(proto: onnx.ModelProto) -> dict[str, int]:
    """How many axes each value has, as far as shape inference can tell.

    It runs on a copy in which every operator of the old kind passes its first operand on, for that is its shape, and
    which claims to be of opset 7, whose operators tell more.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in protobuf.nodes(copy):
        if _lines_up(node) and _gives_truths(node.op_type):
            node.CopyFrom(helper.make_node("Cast", node.input[:1], node.output, to=onnx.TensorProto.BOOL))
        elif _lines_up(node) or node.op_type == "PRelu" or node.op_type == "Dropout":
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1]))
        else:
            _drop_old_attributes(node, "")
    for entry in copy.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = 7
    with contextlib.suppress(Exception):  # it refuses whole models for one node; what is declared still counts
        copy = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    ranks: dict[str, int] = {}
    for graph in protobuf.graphs(copy):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.HasField("shape"):
                ranks[value.name] = len(value.type.tensor_type.shape.dim)
        ranks.update((tensor.name, len(tensor.dims)) for tensor in graph.initializer)
        for node in graph.node:
            ranks.update(_constant_rank(node))
    return ranks


def _constant_rank(node: onnx.NodeProto) -> Iterator[tuple[str, int]]:
    for attribute in node.attribute:
        if node.op_type == "Constant" and attribute.name == "value":
            yield node.output[0], len(attribute.t.dims)


def _names(proto: onnx.ModelProto) -> set[str]:
    """Every name that values and nodes have, in all scopes."""
    names: set[str] = set()
    for graph in protobuf.graphs(proto):
        names.update(value.name for value in (*graph.input, *graph.output))
        names.update(tensor.name for tensor in graph.initializer)
    for node in protobuf.nodes(proto):
        names.update((node.name, *node.input, *node.output))
    return names


def _fresh(stem: str, used: set[str]) -> str:
    name, number = stem, 0
    while name in used:
        number += 1
        name = f"{stem}_{number}"
    used.add(name)
    return name


def _has(node: onnx.NodeProto, name: str) -> bool:
    return any(attribute.name == name for attribute in node.attribute)


def _integer(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _number(node: onnx.NodeProto, name: str) -> float:
    return next((attribute.f for attribute in node.attribute if attribute.name == name), 1.0)
