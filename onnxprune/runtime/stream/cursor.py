"""A network is run block by block; only the values at the current cut are kept, batch by batch, on disk where large.

cursor = Cursor(blocks, feeds)
for values in cursor.run(["conv1_out"]): ...       values of the block ahead, for each batch
cursor.advance()                                   on to the next cut
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from onnxprune import model_io
from onnxprune.runtime.heap import trim
from onnxprune.runtime.session import make_session, run
from onnxprune.runtime.stream.cuts import Block, operands
from onnxprune.runtime.stream.store import Store

Array = npt.NDArray[Any]
Values = dict[str, Array]

_LARGE = 64 << 20  # bytes of a block


class Program:
    """A block, or a part of it, as a session; some of its constants may be inputs, to be given at each run.

    Args:
        model: The model that the nodes are of; it stays as it is.
        nodes: In the order of the graph.
        outputs: Names of the values wanted.
        example: Values from outside, for their types.
        open_constants: Names of constants that are given at each run.
    """

    def __init__(
        self, model: ir.Model, nodes: Sequence[ir.Node], outputs: Sequence[str], example: Mapping[str, Array],
        open_constants: Sequence[str] = (),
    ) -> None:  # fmt: skip
        part = part_of(model, nodes, outputs, example, open_constants)
        made = {str(v.name) for v in part.graph.outputs}
        self.reads = [str(v.name) for v in part.graph.inputs]
        self._passed = [name for name in outputs if name not in made]
        self._session: ort.InferenceSession | None = None
        if len(part.graph):
            # ONNX Runtime rewrites Dequantize operators and is off by 1e-2
            exact = any("Dequantize" in node.op_type for node in part.graph)
            # memory that is kept halves the time of large values, which is page faults; not beside large weights
            lean = model_io.serialized_size(part) > _LARGE
            self._session = make_session(part, optimize="basic" if exact else "all", lean=lean)

    def __call__(self, values: Mapping[str, Array]) -> Values:
        """Run on one batch."""
        outputs = {name: values[name] for name in self._passed}
        if self._session is not None:
            outputs |= run(self._session, {name: values[name] for name in self.reads})
        return outputs


def part_of(
    model: ir.Model, nodes: Sequence[ir.Node], outputs: Sequence[str], example: Mapping[str, Array],
    open_constants: Sequence[str] = (),
) -> ir.Model:  # fmt: skip
    """Return some nodes of a model as a model of its own; for the arguments see `Program`.

    Names in `outputs` that none of the nodes makes are left out.
    """
    nodes = needed_nodes(nodes, set(outputs))
    made = {out for node in nodes for out in node.outputs}
    by_name = {str(v.name): v for v in made if v.name}
    read = dict.fromkeys(v for node in nodes for v in operands(node) if v not in made)
    opened = set(open_constants)
    constants = [v for v in read if v.const_value is not None and v.name not in opened]
    fed_values = [v for v in read if v.const_value is None or v.name in opened]
    graph = model.graph
    view = ir.GraphView(
        fed_values, [by_name[name] for name in outputs if name in by_name], nodes=nodes,
        initializers=constants, opset_imports=graph.opset_imports, name=graph.name,
    ).clone()  # fmt: skip
    for value, source in zip(view.inputs, fed_values, strict=True):
        array = source.const_value.numpy() if source.const_value is not None else example[str(source.name)]
        value.const_value = None
        dtype = ir.DataType.from_numpy(array.dtype) if array.dtype != object else ir.DataType.STRING
        value.type = ir.TensorType(dtype)
        # A constant is replaced by one of its shape; some operators infer wrong shapes where it is unknown.
        value.shape = ir.Shape([None] * array.ndim if source.const_value is None else array.shape)
    for value in view.outputs:
        value.shape = None
    return ir.Model(view, ir_version=model.ir_version, functions=list(model.functions.values()))


def needed_nodes(nodes: Sequence[ir.Node], names: set[str]) -> list[ir.Node]:
    """Return those of some nodes that values of these names depend on."""
    kept: list[ir.Node] = []
    wanted = set(names)
    for node in reversed(nodes):
        if any(out.name in wanted for out in node.outputs if out.name):
            kept.append(node)
            wanted.update(str(v.name) for v in operands(node))
    return kept[::-1]


class Cursor:
    """A model's values at a cut.

    Args:
        model: The model. Its constants are read when a block is run, so that a block may be changed before.
        blocks: Its blocks, from `cuts`.
        feeds: Batches.

    Attributes:
        position: The number of the block ahead.
        state: For each batch, the values at the cut.
    """

    def __init__(self, model: ir.Model, blocks: Sequence[Block], feeds: Sequence[Mapping[str, Array]]) -> None:
        self.model, self.blocks, self.position = model, blocks, 0
        self.state: list[Values] = [dict(feed) for feed in feeds]
        self._store = Store()

    @property
    def block(self) -> Block:
        """The block ahead."""
        return self.blocks[self.position]

    def run(self, names: Sequence[str]) -> Iterator[Values]:
        """Yield values of the block ahead, or at the cut before it, batch by batch."""
        program = Program(self.model, self.block.nodes, names, self.state[0])
        for values in self.state:
            yield program(values)

    def advance(self, names: Sequence[str] = ()) -> Iterator[Values]:
        """Run the block ahead and go on to the cut behind it; yields other values of it on the way.

        The generator must be run to its end.
        """
        kept = sorted(self.block.live)
        program = Program(self.model, self.block.nodes, list(dict.fromkeys([*kept, *names])), self.state[0])
        for number, values in enumerate(self.state):
            outputs = program(values)
            self.state[number] = self._store.kept({name: outputs[name] for name in kept}, len(self.state))
            yield {name: outputs[name] for name in names}
        self.position += 1
        del program
        trim()

    def skip(self) -> None:
        """Go on to the next cut."""
        for _ in self.advance():
            pass
