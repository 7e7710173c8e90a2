"""Blocks of the pruned network are trained to give what the dense ones give, then the network as a whole.

    for result in Alignment(dense, pruned, kept, samples, seed, plan, tell).run(): ...

The blocks are those of the stream (runtime/stream). A block reads what the pruned network gives it and is compared with
the dense network at the cut behind it. The whole is compared at all cuts and at its outputs. Every fifth batch is held
back: numbers stay only where the error there falls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import Parameter

from onnxprune.bridge import OnnxModule, to_torch, write_back
from onnxprune.bridge.dtypes import from_numpy
from onnxprune.bridge.parameters import Role
from onnxprune.graph.hints import Feeds
from onnxprune.recovery.descent import LOOKS, RATES, copied, descend, rate_by_range_test, restore
from onnxprune.recovery.pictures import Augment, augmentation
from onnxprune.recovery.places import Place, compared_at
from onnxprune.runtime.stream.cursor import Cursor, Program, Values, part_of
from onnxprune.runtime.stream.cuts import Block, common_blocks
from onnxprune.runtime.stream.gather import Batches
from onnxprune.structure.rewrite import Kept
from onnxprune.training.likeness import Kind, distance, kind_of_outputs
from onnxprune.training.widen import widen

Array = npt.NDArray[Any]

HELD_EVERY = 5
_EARLIER = 0.3  # what all cuts but the last weigh together, beside 1 for the last
_ALIKE = 1e-5  # relative error of a block below which there is nothing to gain


@dataclass(frozen=True)
class Plan:
    """How many steps are taken.

    Attributes:
        block: For each block.
        whole: For the network.
        tried: For each rate of the range test.
    """

    block: int
    whole: int
    tried: int


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
        samples: Calibration inputs.
        seed: Of everything that is drawn.
        plan: How many steps are taken.
        tell: Called with what goes on.

    Raises:
        ModelError: The bridge does not know an operator of the model.
    """

    def __init__(
        self, dense: ir.Model, pruned: ir.Model, kept: Kept, samples: Batches, seed: int, plan: Plan,
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.dense, self.pruned, self.samples = dense, pruned, samples
        self.seed, self.plan, self.tell = seed, plan, tell
        self.blocks = common_blocks(dense, pruned, samples.sizes(dense))
        numbers = range(len(samples.feeds))
        self.held = [i for i in numbers if i % HELD_EVERY == HELD_EVERY - 1] or [numbers[-1]]
        self.train = [i for i in numbers if i not in self.held] or list(numbers)
        self.places = [
            compared_at(dense, pruned, kept, sorted(block.live), samples.feeds[0]) for block in self.blocks[1]
        ]

    def run(self) -> Iterator[Tried]:
        """Align the blocks, then the whole; says first how long it takes."""
        whole = self._make_whole()
        if whole is None:
            return
        steps = self.plan.whole + self.plan.block + 2 * len(RATES) * self.plan.tried  # all blocks cost one whole
        seconds = whole.seconds_of_step() * (steps + (LOOKS + 2) * len(self.held))
        self.tell(f"align: about {seconds / 60:.1f} minutes for {len(self.blocks[1])} blocks and the whole")
        yield from self._each_block()
        yield from self._whole()

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
            return self._squares(places, outputs, targets[number], number)

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
        before, after = descend(parameters, loss_at, held, self.plan.block, rate)
        if after < before:
            take(module, part, self.pruned)
        return Tried(name, before, after, f"rate {rate:g}")

    # -- the whole

    def _make_whole(self) -> _Whole | None:
        """The whole with its numbers as they are; None where there is nothing to train."""
        feeds, last = self.samples.feeds, len(self.places) - 1
        places = {p.name: p for number, at in enumerate(self.places) if number < last for p in at}
        outputs = [str(v.name) for v in self.dense.graph.outputs]
        names = list(dict.fromkeys([*places, *outputs]))
        part = part_of(self.pruned, list(self.pruned.graph), names, feeds[0])
        module, parameters = module_of(part)
        names = [str(v.name) for v in part.graph.outputs]
        dense = Program(self.dense, list(self.dense.graph), names, feeds[0])
        compared = [places[n] for n in names if n in places]
        return _Whole(self, part, module, parameters, dense, compared, outputs) if parameters else None

    def _whole(self) -> Iterator[Tried]:
        whole = self._make_whole()
        if whole is None:
            return
        first = copied(whole.parameters)
        self.tell(f"align the whole: {self.plan.whole} steps")
        rate = rate_by_range_test(whole.parameters, whole.loss_at, self.plan.tried)
        outputs_before = whole.held_outputs()
        before, after = descend(whole.parameters, whole.loss_at, whole.held, self.plan.whole, rate)
        outputs_after = whole.held_outputs()
        if outputs_after > outputs_before:
            restore(whole.parameters, first)
            after = before
        if after < before:
            take(whole.module, whole.part, self.pruned)
        detail = f"rate {rate:g}, outputs {outputs_before:.4g} -> {outputs_after:.4g}"
        yield Tried("the whole", before, after, detail)

    def _squares(self, places: Sequence[Place], mine: Sequence[Tensor], theirs: Values, number: int) -> Tensor:
        """Weighted squared differences at some places, each over the variance of the dense values there."""
        earlier = _EARLIER / max(1, len(places) - 1)
        total = torch.zeros(())
        for index, (place, ours) in enumerate(zip(places, mine, strict=True)):
            gap = (ours.float() - from_numpy(place.left(theirs[place.name])).float()).square() / place.variance
            counted = self.samples.tokens[number]
            if counted is not None and gap.shape[:2] == counted.shape:
                gap = gap[torch.from_numpy(counted)]
            total = total + gap.mean() * (1.0 if index == len(places) - 1 else earlier)
        return total

    def _batch(self, step: int) -> int:
        """The number of the batch of a step: all once, then in another order."""
        epoch, place = divmod(step, len(self.train))
        return self.train[int(np.random.default_rng((self.seed, epoch)).permutation(len(self.train))[place])]


class _Whole:
    """The whole network, its dense twin, and what they are compared by."""

    def __init__(
        self, work: Alignment, part: ir.Model, module: OnnxModule, parameters: Sequence[Parameter], dense: Program,
        places: Sequence[Place], outputs: Sequence[str],
    ) -> None:  # fmt: skip
        self.part, self.module, self.parameters = part, module, parameters
        self._work, self._dense, self._places = work, dense, places
        self._names = [str(v.name) for v in part.graph.outputs]
        example = dense(work.samples.feeds[0])
        self._kinds: dict[str, Kind] = {
            name: kind_of_outputs(np.concatenate([dense(work.samples.feeds[i])[name] for i in work.held]))
            if example[name].ndim > 1 and len({dense(work.samples.feeds[i])[name].shape[1:] for i in work.held}) == 1
            else kind_of_outputs(example[name])
            for name in outputs if name in self._names and example[name].dtype.kind == "f"
        }  # fmt: skip
        self._augment: Augment | None = augmentation(work.dense, work.samples.feeds[0])

    def seconds_of_step(self) -> float:
        """Seconds of a step with its gradients: the least of three."""
        times = []
        for step in range(3):
            started = time.perf_counter()
            torch.autograd.grad(self.loss_at(step), self.parameters, allow_unused=True)
            times.append(time.perf_counter() - started)
        return min(times)

    def _parts(self, feed: Feeds, number: int) -> tuple[Tensor, Tensor]:
        """What is trained on, and the distance of the outputs.

        Scores of classes are trained on only where there are no cuts: the inputs may show none of the classes that
        count, and what brings the scores nearer on these ruins them on others.
        """
        theirs = self._dense(feed)
        mine = dict(zip(self._names, as_tuple(self.module(*tensors(self.part, feed))), strict=True))
        cuts = self._work._squares(self._places, [mine[p.name] for p in self._places], theirs, number)
        ends = {name: distance(kind, mine[name], from_numpy(theirs[name])) for name, kind in self._kinds.items()}
        classes = ("logits", "probabilities") if self._places else ()
        trained = [end for name, end in ends.items() if self._kinds[name] not in classes]
        return torch.stack([cuts, *trained]).sum(), torch.stack([*ends.values(), torch.zeros(())]).sum()

    def loss_at(self, step: int) -> Tensor:
        """The loss of a step."""
        number = self._work._batch(step)
        feed = self._work.samples.feeds[number]
        if self._augment is not None:
            feed = self._augment(feed, np.random.default_rng((self._work.seed, 1, step)))
        return self._parts(feed, number)[0]

    @torch.no_grad()
    def held(self) -> float:
        """The same on held-back inputs."""
        return self._on_held(0)

    @torch.no_grad()
    def held_outputs(self) -> float:
        """The distance of the outputs on held-back inputs."""
        return self._on_held(1)

    def _on_held(self, part: int) -> float:
        work = self._work
        return float(np.mean([float(self._parts(work.samples.feeds[i], i)[part]) for i in work.held]))


def module_of(part: ir.Model) -> tuple[OnnxModule, list[Parameter]]:
    """A model as a module in float32, and what is trained of it: not numbers that are stored in few bits."""
    view = part.clone()
    widen(view)
    module = to_torch(view).eval()
    kinds = {name: target.role for name, target in module.targets.items()}
    trained = []
    for name, parameter in module.named_parameters():
        if kinds.get(name) is Role.PARAMETER and parameter.requires_grad:
            trained.append(parameter)
        else:
            parameter.requires_grad_(False)
    return module, trained


def tensors(part: ir.Model, values: Mapping[str, Array]) -> list[Tensor]:
    """The inputs of a module from arrays by name."""
    made = [from_numpy(np.array(values[str(v.name)])) for v in part.graph.inputs]
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in made]


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """Outputs as a tuple, where a module has one only too."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def take(module: OnnxModule, part: ir.Model, model: ir.Model) -> None:
    """Put a module's numbers into the constants of a model that the part was made from."""
    trained = write_back(module, part).graph.initializers
    for name, value in model.graph.initializers.items():
        if name in trained and trained[name].const_value is not part.graph.initializers[name].const_value:
            value.const_value = trained[name].const_value
