"""Sessions of large models for checks: block by block, so that no session holds more than a few layers.

    with checked_by("blocks"):
        session = check_session(model)
        outputs = run(session, feeds)

ONNX Runtime computes in float32 where it has no kernels for the type of the weights. A block is loaded, run on all
inputs and given back before the next one: what is held are the weights of a few layers, and the values at one cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import onnx_ir as ir
import onnxruntime as ort

from onnxprune.errors import ModelError, OnnxPruneError, RecipeError, VerificationError
from onnxprune.graph.hints import Feeds
from onnxprune.runtime.heap import trim
from onnxprune.runtime.session import COPY_LIMIT, Optimize, expanded_size, make_session, run
from onnxprune.runtime.stream.cursor import part_of
from onnxprune.runtime.stream.cuts import Block, cut_into_blocks
from onnxprune.runtime.stream.extents import value_shapes

Way = Literal["auto", "whole", "blocks"]
"""How a model is run where it is checked: auto is block by block above `COPY_LIMIT`, with weights as float32."""

_WAY: ContextVar[Way] = ContextVar("_WAY", default="auto")


@contextmanager
def checked_by(way: str) -> Iterator[None]:
    """Let all checks inside run models in this way.

    Raises:
        RecipeError: There is no such way.
    """
    if way not in (ways := get_args(Way)):
        raise RecipeError(f"--verify-by: it has to be {', '.join(ways[:-1])} or {ways[-1]} (not {way!r})")
    token = _WAY.set(cast(Way, way))
    try:
        yield
    finally:
        _WAY.reset(token)


def check_session(
    model: ir.Model, *, optimize: Optimize = "basic", error: type[OnnxPruneError] = ModelError
) -> ort.InferenceSession:
    """Return a session of a model that is checked, in the way in use; for the arguments see `make_session`.

    Raises:
        OnnxPruneError: Of type `error`: ONNX Runtime does not accept the model; of blocks, as soon as one is run.
    """
    way = _WAY.get()
    if way == "whole" or (way == "auto" and expanded_size(model) <= COPY_LIMIT):
        return make_session(model, optimize=optimize, error=error)
    return cast(ort.InferenceSession, BlockSession(model, optimize, error))


def run_each(
    session: ort.InferenceSession, batches: Sequence[Feeds], *, error: type[OnnxPruneError]
) -> list[dict[str, Any]]:
    """Run several inputs; block by block each block is loaded once for all of them.

    Raises:
        OnnxPruneError: Of type `error`: ONNX Runtime could not run one of them.
    """
    if isinstance(session, BlockSession):
        return session.outputs(batches, error)
    return [run(session, feeds, error=error) for feeds in batches]


def outputs_of(
    model: ir.Model, batches: Sequence[Feeds], *, error: type[OnnxPruneError] = VerificationError
) -> list[dict[str, Any]]:
    """Run a model in a session of its own, which is gone afterwards: large models are never held twice.

    Raises:
        OnnxPruneError: Of type `error`: ONNX Runtime does not accept the model, or could not run one of the inputs.
    """
    return run_each(check_session(model, error=error), batches, error=error)


@dataclass(frozen=True)
class _End:
    """An input or output, as a session of ONNX Runtime tells it; the type is that of the arrays themselves."""

    name: str
    type: str = ""


class BlockSession:
    """Runs a model block by block; stands for a session of ONNX Runtime.

    Args:
        model: The model, which stays as it is.
        optimize: See `make_session`.
        error: What to raise where a block does not load.
    """

    def __init__(self, model: ir.Model, optimize: Optimize, error: type[OnnxPruneError]) -> None:
        self._model, self._optimize, self._error = model, optimize, error
        self._blocks: list[Block] | None = None

    def get_inputs(self) -> list[_End]:
        """The inputs that are no constants."""
        return [_End(str(v.name)) for v in self._model.graph.inputs if not v.is_initializer()]

    def get_outputs(self) -> list[_End]:
        """The outputs."""
        return [_End(str(v.name)) for v in self._model.graph.outputs]

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Any]:
        """Run one set of inputs."""
        (outputs,) = self.outputs([feeds], None)
        return [outputs[name] for name in names]

    def outputs(self, batches: Sequence[Feeds], error: type[OnnxPruneError] | None) -> list[dict[str, Any]]:
        """Run several sets of inputs; returns output name -> array for each.

        Raises:
            OnnxPruneError: A block does not load, or (of type `error`) does not run.
        """
        state: list[Mapping[str, Any]] = [dict(feeds) for feeds in batches]
        for block in self._in_blocks(batches[0]):
            state = self._through(block, state, error)
            trim()
        names = [end.name for end in self.get_outputs()]
        constant = {n: v.const_value for n, v in self._model.graph.initializers.items() if n in names}
        known = {name: tensor.numpy() for name, tensor in constant.items() if tensor is not None}
        return [{name: {**known, **values}[name] for name in names} for values in state]

    def _in_blocks(self, feeds: Feeds) -> list[Block]:
        if self._blocks is None:
            shapes = value_shapes(self._model, feeds)
            self._blocks = cut_into_blocks(self._model, {name: math.prod(shape) for name, shape in shapes.items()})
        return self._blocks

    def _through(
        self, block: Block, state: Sequence[Mapping[str, Any]], error: type[OnnxPruneError] | None
    ) -> list[Mapping[str, Any]]:
        """The values behind a block, of the values at the cut before it."""
        part = part_of(self._model, block.nodes, sorted(block.live), state[0])
        reads, made = ([str(v.name) for v in ends] for ends in (part.graph.inputs, part.graph.outputs))
        session = (
            make_session(part, optimize=self._optimize, mapped=True, error=self._error) if len(part.graph) else None
        )
        behind: list[Mapping[str, Any]] = []
        for values in state:
            kept = {name: values[name] for name in block.live if name not in made and name in values}
            if session is not None:
                read = {name: values[name] for name in reads}
                kept |= run(session, read) if error is None else run(session, read, error=error)
            behind.append(kept)
        return behind
