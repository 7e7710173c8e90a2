"""From a file, protobuf or model in memory to a checked `onnx_ir.Model`."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir import external_data

from onnxprune.errors import ModelError
from onnxprune.model_io import protobuf
from onnxprune.model_io.bodies import bodies
from onnxprune.model_io.densify import make_dense, refuse_training_info
from onnxprune.model_io.external import byte_size, check_external_data, embed_outside_initializers
from onnxprune.model_io.limits import Limits, runtime_refusal
from onnxprune.model_io.serialise import to_proto
from onnxprune.model_io.source import Source, set_source
from onnxprune.model_io.upgrade import inline_functions, upgrade_opset

_DEFAULT_LIMITS = Limits()


def load(path: str | os.PathLike[str], *, limits: Limits = _DEFAULT_LIMITS) -> ir.Model:
    """Read a model file.

    External data is checked, then left on disk, memory-mapped where it is read. Local functions are inlined; an
    opset older than `limits.oldest_opset` is upgraded; sparse tensors are made dense.

    Raises:
        ModelError: The file is no model that onnxprune can work with; one sentence says which and why.
    """
    path = Path(path)
    proto = protobuf.read_proto(path)
    folder = Path(os.path.abspath(path)).parent
    try:
        return _model(proto, str(path), folder, Path(os.path.abspath(path)), limits)
    except ModelError as error:
        if str(path) in str(error):
            raise
        raise ModelError(f"'{path}': {error}") from error


def load_any(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model, *, limits: Limits = _DEFAULT_LIMITS
) -> ir.Model:
    """A model from a path, an `onnx.ModelProto` or an `onnx_ir.Model`; what came in is never changed.

    Raises:
        ModelError: As `load`; a ModelProto with external data is refused, since it has no folder.
        TypeError: `model` is something else.
    """
    if isinstance(model, ir.Model):
        return _copy(model, limits)
    if isinstance(model, onnx.ModelProto):
        protobuf.check_is_model(model, "the model")
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        return _model(proto, "the model", None, None, limits)
    if isinstance(model, (str, os.PathLike)):
        return load(model, limits=limits)
    raise TypeError(f"a model is a path, an onnx.ModelProto or an onnx_ir.Model, not {type(model).__name__}")


def _model(proto: onnx.ModelProto, name: str, folder: Path | None, path: Path | None, limits: Limits) -> ir.Model:
    refuse_training_info(proto, name)
    _spell_default_domain(proto)
    _refuse_maps(proto, name)
    data_files = check_external_data(proto, folder)
    if folder is not None and data_files:
        embed_outside_initializers(proto, folder)
    make_dense(proto, limits)
    proto = inline_functions(proto, name)
    proto = upgrade_opset(proto, limits.oldest_opset, name)
    _refuse_versions(proto.ir_version, protobuf.default_opset(proto), name)
    _check_initializers(proto, name)
    try:
        with _quiet_reader():
            model = ir.from_proto(proto)
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0].rstrip(". ")
        raise ModelError(f"'{name}' is not a valid ONNX graph: {reason}.") from error
    if folder is not None:
        external_data.set_base_dir(model.graph, str(folder))
    _check_graph(model, name)
    if path is not None:
        set_source(model, Source(path, data_files))
    return model


def _spell_default_domain(proto: onnx.ModelProto) -> None:
    """Write the domain "ai.onnx" as "", its other name, under which every tool knows it."""
    for entry in (*proto.opset_import, *(e for function in proto.functions for e in function.opset_import)):
        if entry.domain == "ai.onnx":
            entry.domain = ""
    for node in protobuf.nodes(proto):
        if node.domain == "ai.onnx":
            node.domain = ""


def _copy(model: ir.Model, limits: Limits) -> ir.Model:
    """A model in memory that shares no mutable part with the caller's, only tensors."""
    if model.functions:
        # The inliner works on protobufs. Reading the weights in is the price of this rare case.
        return _model(to_proto(model), "the model", None, None, limits)
    _refuse_versions(model.ir_version, model.opset_imports.get(""), "the model")
    copy = model.clone()
    _check_graph(copy, "the model")
    return copy


def _refuse_versions(ir_version: int, opset: int | None, name: str) -> None:
    refusal = runtime_refusal(ir_version, opset)
    if refusal:
        versions = f"IR version {ir_version}" + (f" and opset {opset}" if opset is not None else "")
        raise ModelError(f"'{name}' has {versions}, and {refusal}.")


@contextmanager
def _quiet_reader() -> Iterator[None]:
    """onnx-ir warns about undefined values, which are refused by name a moment later."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_initializers(proto: onnx.ModelProto, name: str) -> None:
    """Refuse initializers without a name, and embedded data whose count does not fit the shape."""
    for tensor in protobuf.initializers(proto):
        if not tensor.name:
            raise ModelError(f"'{name}' has an initializer without a name.")
        need = byte_size(tensor)
        if tensor.HasField("raw_data") and len(tensor.raw_data) != need:
            raise ModelError(
                f"'{name}' is damaged: tensor '{tensor.name}' needs {need:,} bytes but has {len(tensor.raw_data):,}."
            )
        if not tensor.HasField("raw_data") and tensor.data_location != onnx.TensorProto.EXTERNAL:
            numbers, stored = _counts(tensor)
            if numbers != stored:
                raise ModelError(
                    f"'{name}' is damaged: tensor '{tensor.name}' needs {numbers:,} numbers but has {stored:,}."
                )


def _refuse_maps(proto: onnx.ModelProto, name: str) -> None:
    """Refuse what onnx-ir has no type for."""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        kind = value.type
        while kind.HasField("sequence_type"):
            kind = kind.sequence_type.elem_type
        if kind.HasField("map_type"):
            raise ModelError(
                f"'{name}' has the map '{value.name}' among its values, which is not read: export it as a tensor "
                "(from scikit-learn with options={'zipmap': False})."
            )


def _counts(tensor: onnx.TensorProto) -> tuple[int, int]:
    """How many entries the tensor's own field for its type must hold, and how many it holds."""
    elements = math.prod(tensor.dims)
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        elements *= 2
    elif tensor.data_type != onnx.TensorProto.STRING and (bits := ir.DataType(tensor.data_type).bitwidth) < 8:
        elements = -(-elements * bits // 8)  # several to a number
    return elements, len(getattr(tensor, field))


def _check_graph(model: ir.Model, name: str) -> None:
    """Refuse undefined values and cycles; put nodes into topological order where they are not.

    ONNX asks for sorted nodes, but ONNX Runtime sorts by itself, so that unsorted files exist.
    """
    if not _is_sorted(model.graph, name, set()):
        try:
            model.graph.sort()
        except ValueError as error:
            raise ModelError(f"'{name}' is not a valid ONNX graph: its nodes form a cycle.") from error


def _is_sorted(graph: ir.Graph, name: str, seen: set[ir.Node]) -> bool:
    """Whether nodes, those of bodies too, come behind all whose outputs they read; `seen` are those before the graph.

    Raises:
        ModelError: A value is produced nowhere.
    """
    in_order = True
    for node in graph:
        for value in node.inputs:
            if value is not None and not _is_given(value):
                if value.producer() is None:
                    raise ModelError(
                        f"'{name}' is not a valid ONNX graph: value '{value.name}', read by node '{node.name}' "
                        f"({node.op_type}), is produced nowhere."
                    )
                in_order &= value.producer() in seen
        for body in bodies(node):
            in_order &= _is_sorted(body, name, seen)
        seen.add(node)
    for value in graph.outputs:
        if value.producer() is None and not _is_given(value):
            raise ModelError(f"'{name}' is not a valid ONNX graph: output '{value.name}' is produced nowhere.")
    return in_order


def _is_given(value: ir.Value) -> bool:
    return value.is_graph_input() or value.is_initializer()
