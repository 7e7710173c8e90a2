"""From a file, protobuf or model in memory to a checked `onnx_ir.Model`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.model_io import held, protobuf, small_constants
from onnxprune.model_io.bodies import bodies, graphs_of
from onnxprune.model_io.densify import make_dense, refuse_training_info
from onnxprune.model_io.external import check_external_data, embed_outside_initializers, find_data
from onnxprune.model_io.limits import Limits, runtime_refusal
from onnxprune.model_io.paths import real_path
from onnxprune.model_io.serialise import to_proto
from onnxprune.model_io.source import Source, State, set_bytes, set_source, states_of
from onnxprune.model_io.upgrade import inline_functions, upgrade_opset
from onnxprune.model_io.wellformed import check_bytes, check_tensors, check_text_and_attributes
from onnxprune.model_io.wire import Extent

_DEFAULT_LIMITS = Limits()
_LARGE = 128 << 20  # bytes; the large weights of such a file stay in it until they are needed


def load(path: str | os.PathLike[str], *, limits: Limits = _DEFAULT_LIMITS) -> ir.Model:
    """Read a model file.

    External data is checked, then left on disk, memory-mapped where it is read, and so are the weights of a large file.
    Local functions are inlined; an opset older than `limits.oldest_opset` is upgraded; sparse tensors are made dense.

    Raises:
        ModelError: The file is no model that onnxprune can work with; one sentence says which and why.
    """
    path = Path(path)
    state = states_of([path])
    left: dict[str, Extent] = {}
    proto = protobuf.read_proto(path, left if _stays(path) else None)
    try:
        return _model(proto, str(path), Path(os.path.abspath(path)), limits, state, left)
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
        proto, weights = held.copied(model)
        return _model(proto, "the model", None, limits, weights=weights)
    if isinstance(model, (str, os.PathLike)):
        return load(model, limits=limits)
    raise TypeError(f"a model is a path, an onnx.ModelProto or an onnx_ir.Model, not {type(model).__name__}")


def _stays(path: Path) -> bool:
    """Whether the weights of a file stay in it: of a large one, without a second name, by which it could be another."""
    try:
        status = path.stat()
    except OSError:
        return False  # reading it will say why
    return status.st_size >= _LARGE and status.st_nlink == 1


def _model(
    proto: onnx.ModelProto,
    name: str,
    path: Path | None,
    limits: Limits,
    state: tuple[State | None, ...] = (),
    left: Mapping[str, Extent] = MappingProxyType({}),
    weights: Mapping[int, bytes] = MappingProxyType({}),
) -> ir.Model:
    parts = protobuf.parts_of(proto)
    check_text_and_attributes(proto, parts, name)
    refuse_training_info(proto, name)
    _spell_default_domain(proto, parts.nodes)
    _refuse_maps(proto, name)
    data_files = check_external_data(parts, path)
    outside = tuple(dict.fromkeys(data_files.values()))
    states = (*state, *states_of(outside))
    embed_outside_initializers(parts, data_files)
    if path is not None and left:
        _refer_to_file(proto, name, path, left)
        data_files = {**data_files, path.name: real_path(path)}
    held.refer(proto, name, weights)
    make_dense(parts, limits)
    check_tensors(parts, name)
    proto = inline_functions(proto, name)
    proto = upgrade_opset(proto, limits.oldest_opset, name)
    _refuse_versions(proto.ir_version, protobuf.default_opset(proto), name)
    lifted = small_constants.lift(proto)
    try:
        with _quiet_reader():
            model = ir.from_proto(proto)
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0].rstrip(". ")
        raise ModelError(f"'{name}' is not a valid ONNX graph: {reason}.") from error
    small_constants.read(model, proto, lifted)
    held.put_in(model, weights)
    _free_negative_dims(model)
    _check_graph(model, name)
    if path is not None:
        find_data(model, path.parent, data_files)
        set_source(model, Source(path, outside, states, bool(left)))
        set_bytes(model, sum(state[2] for state in states if state is not None))
    return model


def _refer_to_file(proto: onnx.ModelProto, name: str, path: Path, left: Mapping[str, Extent]) -> None:
    """Say of weights that were left in the model file where they lie, as of external data."""
    for tensor in proto.graph.initializer:
        extent = left.get(tensor.name)
        if extent is None or tensor.HasField("raw_data") or tensor.data_location == onnx.TensorProto.EXTERNAL:
            continue
        check_bytes(tensor, extent.length, name)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        place = {"location": path.name, "offset": extent.offset, "length": extent.length}
        for key, entry in place.items():
            tensor.external_data.add(key=key, value=str(entry))


def _spell_default_domain(proto: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Write the domain "ai.onnx" as "", its other name, under which every tool knows it."""
    for entry in (*proto.opset_import, *(e for function in proto.functions for e in function.opset_import)):
        if entry.domain == "ai.onnx":
            entry.domain = ""
    for node in nodes:
        if node.domain == "ai.onnx":
            node.domain = ""


def _copy(model: ir.Model, limits: Limits) -> ir.Model:
    """A model in memory that shares no mutable part with the caller's, only tensors."""
    if model.functions:
        # The inliner works on protobufs. Reading the weights in is the price of this rare case.
        return _model(to_proto(model), "the model", None, limits)
    _refuse_versions(model.ir_version, model.opset_imports.get(""), "the model")
    copy = model.clone()
    set_bytes(copy, None)
    _free_negative_dims(copy)
    _check_graph(copy, "the model")
    return copy


def _free_negative_dims(model: ir.Model) -> None:
    """Make -1, which older exporters write for a dimension of any extent, one without a number."""
    for graph in graphs_of(model):
        values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
        for value in values:
            if value.shape is not None and any(isinstance(dim, int) and dim < 0 for dim in value.shape):
                dims = [None if isinstance(dim, int) and dim < 0 else dim for dim in value.shape]
                value.shape = ir.Shape(dims)


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
