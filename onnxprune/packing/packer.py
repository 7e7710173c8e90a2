"""Pack a model: each tensor in the smallest form that is smaller than leaving it dense.

In: an `onnx_ir.Model` whose pruned weights hold zeros. Out: a new model in which those weights are decoded by standard
ONNX operators that fold when a session loads, and a report. `onnxprune.packing.unpacker` undoes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from onnxprune.errors import RecipeError
from onnxprune.graph.edit import names_in
from onnxprune.graph.layers import channel_axis
from onnxprune.model_io.bodies import graphs_of
from onnxprune.model_io.external import stored_bytes as tensor_bytes
from onnxprune.packing.decoder import (
    MIN_OPSET,
    MIN_OPSET_BFLOAT16,
    NODE_PREFIX,
    ConstantKey,
    Decoder,
    build_decoder,
    constant_key,
    initializer_cost,
)
from onnxprune.packing.positions import FORMS, MODES, Form, encode, field_table, stored_bytes
from onnxprune.packing.report import PackReport, TensorReport
from onnxprune.packing.values import CODERS, Coded, is_float

Values = Literal["fp32", "fp16", "int8", "codebook16", "codebook256"]
Mode = Literal["auto", "smallest", "gap8", "gap4", "bitmask"]

# In mode "auto" a form that loads slower must save this share of the bytes. It keeps exact weights of 75 to 95 %
# zeros in gap8, and leaves denser ones to the bitmask.
_WORTH_SLOWER = 0.10
_MIN_ELEMENTS = 32
_MAX_ELEMENTS = 2**31 - 1  # positions are int32
_DTYPES = (
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.INT8,
    ir.DataType.UINT8,
)


def pack(model: ir.Model, *, values: Values = "fp32", mode: Mode = "auto") -> tuple[ir.Model, PackReport]:
    """Store the zeros of a model small.

    Args:
        model: Left as it is; the result shares its unpacked tensors.
        values: "fp32" keeps every bit (of any data type). The others are the most that weights may lose; biases and
            other small tensors stay exact, and so does a weight that would be no smaller.
        mode: "auto": gap8, or a form that saves 10 % more; "smallest": the fewest bytes whatever it costs to load;
            "gap8", "gap4", "bitmask": this form, where it is smaller than dense.

    Returns:
        The packed model and what was done to each tensor. Packing a packed model changes nothing.

    Raises:
        RecipeError: `values` or `mode` is not one of the above.
    """
    for name, setting, known in (("values", values, get_args(Values)), ("mode", mode, get_args(Mode))):
        if setting not in known:
            raise RecipeError(f"pack: {name} is {setting!r}; choose one of {', '.join(known)}.")
    packed = model.clone()
    packer = _Packer(values, mode, packed.opset_imports.get("", 0), packed.ir_version, _free_prefix(packed))
    reports = [report for graph in graphs_of(packed) for report in packer.pack_graph(graph)]
    for function in packed.functions.values():
        reports.extend(_left(v, "Constant in a function body") for v, _ in _constants(function))
    return packed, PackReport(mode, values, tuple(reports))


@dataclass(frozen=True)
class _Choice:
    """A tensor's best coding so far: fewest weighted bytes."""

    form: Form
    coded: Coded
    rank: float


@dataclass
class _Packer:
    values: str
    mode: str
    opset: int
    ir_version: int
    prefix: str
    count: int = 0
    graphs: int = 0
    shared: dict[ConstantKey, ir.Value] = field(default_factory=dict)

    def pack_graph(self, graph: ir.Graph) -> list[TensorReport]:
        """Pack the tensors of one graph, the largest first: they bring the constants that smaller ones share."""
        self.shared = {}
        self.graphs += 1
        sources = list(_sources(graph))
        order = sorted(range(len(sources)), key=lambda i: (-_nbytes(sources[i][0]), i))
        reports: dict[int, TensorReport] = {}
        decoders: list[ir.Node] = []
        for i in order:
            value, node = sources[i]
            reports[i] = self._pack_tensor(graph, value, node, decoders)
        if decoders:
            for shared in self.shared.values():
                graph.register_initializer(shared)
            _put_first(graph, decoders)
        return [reports[i] for i in range(len(sources))]

    def _pack_tensor(
        self, graph: ir.Graph, value: ir.Value, node: ir.Node | None, decoders: list[ir.Node]
    ) -> TensorReport:
        refusal = self._refusal(value)
        if refusal:
            return _left(value, refusal)
        constant = value.const_value
        assert constant is not None
        array = constant.numpy()
        exact = CODERS["exact"](array, 0)
        assert exact is not None
        sparsity = 1.0 - float(exact.kept.mean())
        choice, note = self._choose(value, exact)
        if choice is None:
            return replace(_left(value, note or "no form is smaller than dense"), sparsity=sparsity)
        prefix = f"{self.prefix}{self.count}"
        decoder = Decoder(prefix, self.shared, f"{self.prefix}g{self.graphs}")
        kept = np.flatnonzero(choice.coded.kept)
        stream = encode(choice.form, kept, array.size)
        new = build_decoder(decoder, value, choice.coded, stream)
        cost = decoder.cost + len(value.name or "") + 3 * array.ndim + 16  # the last: its value_info
        if cost >= initializer_cost(value):
            return replace(_left(value, "no form is smaller than dense"), sparsity=sparsity)
        error = _relative_error(array, choice.coded)
        report = _left(value, note)
        report = replace(report, form=choice.form.name, values=choice.coded.kind, sparsity=sparsity)
        self._accept(graph, value, node, new, decoder)
        decoders.extend(decoder.nodes)
        return replace(report, packed_bytes=cost, relative_error=error)

    def _accept(self, graph: ir.Graph, old: ir.Value, node: ir.Node | None, new: ir.Value, decoder: Decoder) -> None:
        self.count += 1
        self.shared.update(decoder.new_shared)
        if node is None:
            del graph.initializers[old.name or ""]
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if node is not None:
            graph.remove(node, safe=True)
        for initializer in decoder.initializers:
            graph.register_initializer(initializer)

    def _refusal(self, value: ir.Value) -> str:
        """Why this tensor must stay as it is, or ""."""
        constant = value.const_value
        assert constant is not None
        if self.opset < MIN_OPSET:
            return f"the model's opset is {self.opset}; decoders need {MIN_OPSET}"
        if self.ir_version < 4:
            return f"IR version {self.ir_version} makes every initializer an input"
        if value.is_graph_input():
            return "graph input with a default: the caller may override it"
        if constant.dtype not in _DTYPES:
            return f"{constant.dtype.name} is not packed"
        if constant.dtype == ir.DataType.BFLOAT16 and self.opset < min(MIN_OPSET_BFLOAT16.values()):
            return f"the model's opset is {self.opset}; bfloat16 needs {min(MIN_OPSET_BFLOAT16.values())}"
        size = constant.size
        if size > _MAX_ELEMENTS:
            return "more than 2**31 - 1 elements"
        return "too small to win" if size < _MIN_ELEMENTS else ""

    def _choose(self, value: ir.Value, exact: Coded) -> tuple[_Choice | None, str]:
        """The best form and coding, None when dense is, and a note on why lossy values were not used."""
        constant = value.const_value
        assert constant is not None
        array = constant.numpy()
        candidates, note = [exact], ""
        shared = CODERS["shared"](array, 0)
        if shared is not None:
            candidates.append(shared)
        if self.values != "fp32":
            lossy, note = self._code_lossy(value)
            candidates.extend([lossy] if lossy is not None else [])
        names = [n for n in MODES[self.mode] if self._allowed(FORMS[n], constant.dtype)]
        best = _Choice(FORMS["dense"], exact, float(array.nbytes))
        for coded in candidates:
            kept = np.flatnonzero(coded.kept)
            for form in (FORMS[n] for n in names):
                if form.layout == "constant" and kept.size or (form.layout == "dense" and coded is exact):
                    continue
                size = stored_bytes(form, kept, array.size, coded.bits) + coded.side_bytes + form.overhead
                size += self._table_bytes({form.bits, coded.bits if coded.table is not None else 0})
                rank = size / (1 - _WORTH_SLOWER) if form.slow and self.mode == "auto" else float(size)
                if size < array.nbytes and rank < best.rank:
                    best = _Choice(form, coded, rank)
        return (None if best.form.layout == "dense" and best.coded is exact else best), note

    def _code_lossy(self, value: ir.Value) -> tuple[Coded | None, str]:
        constant = value.const_value
        assert constant is not None
        array = constant.numpy()
        if not is_float(array.dtype) or array.ndim < 2:
            return None, "values kept exact: only weights of two or more dimensions lose bits"
        axis = channel_axis(value)
        if axis is None:
            return None, "values kept exact: not read as a weight by operators that are known"
        if not np.isfinite(array).all():
            return None, "values kept exact: they hold NaN or infinity"
        coded = CODERS[self.values](array, axis)
        return coded, "" if coded is not None else f"values kept exact: they do not fit {self.values}"

    def _table_bytes(self, widths: set[int]) -> int:
        """What the lookup tables for these widths add to the file: nothing once a larger tensor has brought them."""
        tables = [field_table(bits) for bits in widths if 0 < bits < 8]
        return sum(table.nbytes for table in tables if constant_key(table) not in self.shared)

    def _allowed(self, form: Form, dtype: ir.DataType) -> bool:
        return dtype != ir.DataType.BFLOAT16 or self.opset >= MIN_OPSET_BFLOAT16[form.layout]


def _sources(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.Node | None]]:
    """Every tensor of the graph that packing may look at: initializers, then Constant nodes (with the node)."""
    helpers = {v for node in graph if (node.name or "").startswith(NODE_PREFIX) for v in _decoder_inputs(node)}
    for value in graph.initializers.values():
        if value not in helpers and value.const_value is not None:
            yield value, None
    yield from _constants(graph)


def _decoder_inputs(last: ir.Node) -> Iterator[ir.Value]:
    """All values a decoder reads, from its last node backwards."""
    for value in last.inputs:
        if value is not None:
            yield value
            producer = value.producer()
            if producer is not None:
                yield from _decoder_inputs(producer)


def _constants(graph: ir.Graph | ir.Function) -> Iterator[tuple[ir.Value, ir.Node]]:
    """Constant nodes that hold a tensor of some size; their tensor becomes the value's."""
    for node in graph:
        attribute = node.attributes.get("value")
        if node.op_type != "Constant" or node.domain != "" or attribute is None:
            continue
        tensor = attribute.as_tensor()
        if tensor.size >= _MIN_ELEMENTS:
            value = node.outputs[0]
            value.const_value, value.shape, value.type = (
                tensor,
                ir.Shape(tensor.shape.numpy()),
                ir.TensorType(tensor.dtype),
            )
            yield value, node


def _put_first(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    first = next(iter(graph), None)
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)


def _nbytes(value: ir.Value) -> int:
    assert value.const_value is not None
    return tensor_bytes(value.const_value)


def _left(value: ir.Value, reason: str) -> TensorReport:
    constant = value.const_value
    assert constant is not None
    cost = initializer_cost(value)
    shape = tuple(constant.shape.numpy())
    return TensorReport(value.name or "", shape, constant.dtype.name, "dense", "exact", None, cost, cost, 0.0, reason)


def _relative_error(array: np.ndarray, coded: Coded) -> float:
    if coded.kind == "exact":
        return 0.0
    wide = array.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    difference = coded.decode(array.shape, array.dtype).astype(np.float64) - wide
    return float(np.linalg.norm(difference)) / norm if norm else 0.0


def _free_prefix(model: ir.Model) -> str:
    """A short prefix that no value of the model starts with."""
    names = names_in(model)
    prefixes = (f"pk{number or ''}_" for number in itertools.count())
    return next(prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names))
