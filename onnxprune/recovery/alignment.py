"""Blocks of the pruned network are trained to give what the dense ones give, then the network as a whole.

    for result in Alignment(dense, pruned, kept, used, held, seed, plan, tell, fit).run(): ...

The blocks are those of the stream (runtime/stream). A block reads what the pruned network gives it and is compared with
the dense network at the cut behind it. The whole is compared at all cuts and at its outputs. Numbers stay only where
the error falls on inputs that are held back, from the fits before it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.graph.tensors import numbers_of, put_back
from onnxprune.recovery.descent import LOOKS, RATE_OF_WHOLE, RATES, descend, rate_by_range_test
from onnxprune.recovery.modules import as_tuple, module_of, squares, take, tensors
from onnxprune.recovery.outputs import Outputs
from onnxprune.recovery.pictures import augmentation
from onnxprune.recovery.places import Place, compared_at
from onnxprune.recovery.tail import Pruning, Tail
from onnxprune.runtime.stream.cursor import Cursor, Values, part_of
from onnxprune.runtime.stream.cuts import Block, common_blocks
from onnxprune.runtime.stream.gather import Batches
from onnxprune.structure.rewrite import Kept

Array = npt.NDArray[Any]

LEAST_STEPS = 200
"""Of the whole, however much work one is."""

_ALIKE = 1e-5  # relative error of a block below which there is nothing to gain


Fit = Callable[[Sequence[ir.Node], Batches], None]
"""Fits the layers of some nodes of the pruned model in closed form, to some batches."""


@dataclass(frozen=True)
class Plan:
    """How many steps are taken.

    Attributes:
        block: For each block.
        whole: For the network, at most.
        work: Multiply-adds of the steps for the network, forwards, at most, unless that are less than `LEAST_STEPS`.
        tried: For each rate of the range test.
        draws: How many times the inputs are drawn, where they are pictures, the first time as they are.
    """

    block: int
    whole: int
    work: float
    tried: int
    draws: int


@dataclass(frozen=True)
class Tried:
    """What was tried on a block or the whole, with its error on held-back inputs before and after."""

    name: str
    before: float
    after: float
    detail: str

    @property
    def kept(self) -> bool:
        """Whether it got better."""
        return self.after < self.before


class Alignment:
    """The state of one alignment.

    Args:
        dense: The model before pruning.
        pruned: The model after; its numbers are changed in place.
        kept: The kept indices of cut constants.
        used: Calibration inputs that are trained on.
        held: Others, which no fit has seen.
        seed: Of everything that is drawn.
        plan: How many steps are taken.
        tell: Called with what goes on.
        fit: Fits layers in closed form, see `Fit`.

    Raises:
        ModelError: The bridge does not know an operator of the model.
    """

    def __init__(
        self, dense: ir.Model, pruned: ir.Model, kept: Kept, used: Batches, held: Batches, seed: int, plan: Plan,
        tell: Callable[[str], None], fit: Fit,
    ) -> None:  # fmt: skip
        self.dense, self.pruned = dense, pruned
        self.samples = samples = used + held
        self.seed, self.plan, self.tell, self.fit = seed, plan, tell, fit
        self.blocks = common_blocks(dense, pruned, samples.sizes(dense))
        self.train = range(len(used.feeds))
        self.held = range(len(used.feeds), len(samples.feeds))
        self.augment = augmentation(dense, samples.feeds[0])
        self.outputs = Outputs.of(dense, samples.feeds, self.train, self.held)
        self.places = [
            compared_at(dense, pruned, kept, sorted(block.live), samples.feeds[0]) for block in self.blocks[1]
        ]

    def run(self) -> Iterator[Tried]:
        """Align the blocks, then the whole; says first how long it takes."""
        tail = self._end()
        if not tail.parameters:
            return
        steps = self._steps(tail) + self.plan.block + 2 * len(RATES) * self.plan.tried  # all blocks cost one whole
        self.tell(f"align: about {tail.seconds(steps, LOOKS + 2) / 60:.1f} minutes for "
                  f"{len(self.blocks[1])} blocks and the whole")  # fmt: skip
        start = numbers_of(self.pruned)
        first = self._outputs(tail)
        del tail
        put_back(self.pruned, start)
        blocks = list(self._each_block())
        whole, best = self._whole(first, any(block.kept for block in blocks))
        if best > first:
            put_back(self.pruned, start)
            blocks = [replace(b, after=b.before, detail=f"{b.detail}, the outputs got worse") for b in blocks]
        yield from blocks
        yield whole

    # -- blocks

    def _each_block(self) -> Iterator[Tried]:
        dense, pruned = (Cursor(m, b, self.samples.feeds)
                         for m, b in zip((self.dense, self.pruned), self.blocks, strict=True))  # fmt: skip
        last = len(self.blocks[1]) - 1
        for number, block in enumerate(self.blocks[1]):
            places = self.places[number]
            targets = list(dense.advance([place.name for place in places]))
            if places and number < last:  # what the last gives are the outputs, of which the whole takes care
                result = self._one_block(block, places, pruned, targets)
                if result is not None:
                    yield result
            del targets
            pruned.skip()

    def _one_block(
        self, block: Block, places: Sequence[Place], pruned: Cursor, targets: Sequence[Values]
    ) -> Tried | None:
        names = [place.name for place in places]
        part = part_of(self.pruned, block.nodes, names, pruned.state[0])
        module, parameters = module_of(part)
        if not parameters or len(part.graph.outputs) < len(names):
            return None

        def loss(number: int) -> Tensor:
            outputs = as_tuple(module(*tensors(part, pruned.state[number])))
            return squares(places, outputs, targets[number], self.samples.tokens[number])

        @torch.no_grad()
        def held() -> float:
            return float(np.mean([float(loss(number)) for number in self.held]))

        def loss_at(step: int) -> Tensor:
            return loss(self._batch(step))

        if held() < _ALIKE:
            return None
        name = names[0]
        self.tell(f"align {name}")
        rate = rate_by_range_test(parameters, loss_at, self.plan.tried)
        before, after, rate = descend(parameters, loss_at, held, self.plan.block, rate)
        if after < before:
            take(module, part, self.pruned)
        return Tried(name, before, after, f"rate {rate:g}")

    # -- the whole

    def _end(self) -> Tail:
        nets = Pruning(self.dense, self.pruned, self.blocks, [*self.places[:-1], []], self.samples, self.train,
                       self.held, self.outputs)  # fmt: skip
        return Tail(nets, self.augment, self.plan.draws, self.seed)

    def _whole(self, first: float, changed: bool) -> tuple[Tried, float]:
        """Train the whole; keep the best of what is there before and after.

        Args:
            first: The distance of the outputs before anything was aligned.
            changed: Whether blocks were aligned.

        Returns:
            What was tried, and the distance of the outputs at the end.
        """
        tail, start = self._end(), numbers_of(self.pruned)
        begun, before = self._outputs(tail), tail.held()
        last, after, detail = begun, before, ""
        if before > _ALIKE:
            rate, after = self._descend(tail)
            tail.take()
            last = self._outputs(tail)
            detail = f"rate {rate:g}, outputs {begun:.4g} -> {last:.4g}"
        if after < before and last <= min(first, begun):
            self._fit(tail.closed, [*self.train, *self.held])
            return Tried("the whole", before, after, detail), last
        put_back(self.pruned, start)
        if changed and begun <= first:
            self._fit(tail.closed, [*self.train, *self.held])
        return Tried("the whole", before, before, detail), begun if changed else first

    def _descend(self, tail: Tail) -> tuple[float, float]:
        """Draw inputs and train; returns the rate and the error on held-back inputs."""
        for draw in tail.draw():
            self.tell(f"align the whole: inputs drawn {draw + 1} of {tail.draws} times")
        steps = self._steps(tail)
        self.tell(f"align the whole: {steps} steps from block {tail.first + 1} on")
        _, after, rate = descend(tail.parameters, tail.loss_at, tail.held, steps, RATE_OF_WHOLE)
        return rate, after

    def _steps(self, tail: Tail) -> int:
        return steps_within(self.plan.work, self.plan.whole, tail.multiply_adds)

    def _outputs(self, tail: Tail) -> float:
        """The distance of the outputs on held-back inputs, with what is behind the last place fitted to the others."""
        self._fit(tail.closed, self.train)
        return tail.held_outputs()

    def _fit(self, blocks: Sequence[Block], numbers: Sequence[int]) -> None:
        """Fit what is behind the last place to some of the batches."""
        if blocks:
            feeds, tokens = self.samples.feeds, self.samples.tokens
            count = self.samples.count * len(numbers) // len(feeds)
            some = Batches([feeds[i] for i in numbers], [tokens[i] for i in numbers], count)
            self.fit([node for block in blocks for node in block.nodes], some)

    def _batch(self, step: int) -> int:
        """The number of the batch of a step: all once, then in another order."""
        epoch, place = divmod(step, len(self.train))
        return self.train[int(np.random.default_rng((self.seed, epoch)).permutation(len(self.train))[place])]


def steps_within(work: float, most: int, each: int) -> int:
    """How many steps of the whole are taken.

    Args:
        work: Multiply-adds of all steps, at most.
        most: Steps, at most.
        each: Multiply-adds of one.
    """
    return min(most, max(LEAST_STEPS, int(work / each)))
