"""The end of a pruned network that is trained as a whole, with what it reads and what it is compared with.

Leading blocks that give nearly what the dense ones give stay as they are, since they cost the most and gain the least.
So what they give is made once, as are the dense network's values: for the inputs and, where these are pictures, for
others drawn from them. A step runs the end of the pruned network only.
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

from onnxprune.bridge.dtypes import from_numpy
from onnxprune.data.detection.decode import recognise
from onnxprune.data.detection.heads import picture_size
from onnxprune.graph.hints import Feeds
from onnxprune.graph.size import graph_macs
from onnxprune.recovery.modules import as_tuple, module_of, squares, take, tensors
from onnxprune.recovery.outputs import Outputs
from onnxprune.recovery.pictures import Augment
from onnxprune.recovery.places import Place
from onnxprune.runtime.probe import inferred_shapes
from onnxprune.runtime.stream.cursor import Program, Values, part_of
from onnxprune.runtime.stream.cuts import Block
from onnxprune.runtime.stream.effects import CLASSES, TEMPERATURE
from onnxprune.runtime.stream.gather import Batches
from onnxprune.runtime.stream.store import SMALLEST, Store
from onnxprune.training.detections import Detector, apart

Array = npt.NDArray[Any]

ROOM = 4 << 30
"""Bytes of the values of all drawn inputs, most of them on disk."""

SHOWN = 0.9
"""Share of the inputs held back whose classes others must show, for scores of classes to be trained, too."""

_NEARLY = 1 / 3  # of the relative error in front of the outputs: blocks up to a cut with less are not trained


@dataclass(frozen=True, eq=False)
class Pruning:
    """A network before and after, cut at the same values.

    Attributes:
        dense, pruned: The models.
        blocks: Of each, in equal numbers.
        places: For each block, where the two are compared behind it; nothing behind the last.
        samples: Calibration inputs.
        train, held: Numbers of the batches that are trained on and held back.
        outputs: What the outputs are.
    """

    dense: ir.Model
    pruned: ir.Model
    blocks: tuple[Sequence[Block], Sequence[Block]]
    places: Sequence[Sequence[Place]]
    samples: Batches
    train: Sequence[int]
    held: Sequence[int]
    outputs: Outputs


@dataclass(frozen=True, eq=False)
class _Item:
    """One batch: what the end of the pruned network reads, and the dense values at the places and outputs."""

    number: int
    read: Values
    dense: Values


class Tail:
    """The end of a pruned network as a module.

    Args:
        nets: The networks; the pruned one stays as it is until `take` is called.
        augment: What draws other inputs; None for none.
        draws: How many times all inputs are drawn, the first time as they are.
        seed: Of what is drawn.

    Attributes:
        first: The number of the first block that is trained.
        parameters: What is trained; empty where there is nothing.
        closed: Blocks behind the last place where outputs are scores of classes that are not trained.
    """

    def __init__(self, nets: Pruning, augment: Augment | None, draws: int, seed: int) -> None:
        self._nets, self._seed = nets, seed
        self.first = first_trained(nets)
        before, after = nets.blocks[1][: self.first], nets.blocks[1][self.first :]
        self._places = [place for at in nets.places[self.first :] for place in at]
        outputs = [str(v.name) for v in nets.dense.graph.outputs]
        names = list(dict.fromkeys([*(place.name for place in self._places), *outputs]))
        feed = nets.samples.feeds[0]
        live = sorted(before[-1].live) if before else []
        self._lead = Program(nets.pruned, [n for b in before for n in b.nodes], live, feed) if before else None
        self._part = part_of(nets.pruned, [n for b in after for n in b.nodes], names, self._given(feed))
        self._module, self.parameters = module_of(self._part)
        self._names = [str(v.name) for v in self._part.graph.outputs]
        self._places = [place for place in self._places if place.name in self._names]
        self._dense = Program(nets.dense, list(nets.dense.graph), self._names, feed)
        self._store = Store()
        self._held = [self._item(nets.samples.feeds[i], i, len(nets.held)) for i in nets.held]
        self._kinds = {name: kind for name, kind in nets.outputs.kinds.items() if name in self._names}
        self._detector = self._detector_of(outputs)
        if not self._places and not self._kinds:
            self.parameters = []  # there is nothing to compare
        self._augment = augment
        draws = 1 if augment is None else draws
        self._stored: Callable[[Mapping[str, Array]], Values] = dict
        if self._bytes_of_a_draw() * draws > ROOM:
            self._stored = in_16_bits
        self.draws = max(1, min(draws, ROOM // self._bytes_of_a_draw()))
        self._items: list[_Item] = []

    @property
    def closed(self) -> Sequence[Block]:
        """See above."""
        of_classes = bool(self._kinds) and all(kind in CLASSES for kind in self._kinds.values())
        return self._nets.blocks[1][-1:] if of_classes and not self._scores_too else ()

    @property
    def multiply_adds(self) -> int:
        """Of one step forwards, at least 1."""
        return max(1, graph_macs(self._part, inferred_shapes(self._part, self._held[0].read))[0])

    def seconds(self, steps: int, looks: int) -> float:
        """Estimate the time of drawing and of so many steps and looks at what is held back."""
        number = self._nets.train[0]
        started = time.perf_counter()
        item = self._item(self._nets.samples.feeds[number], number, 1)
        drawn = time.perf_counter() - started
        times = []
        for _ in range(2):
            started = time.perf_counter()
            torch.autograd.grad(self._loss(item), self.parameters, allow_unused=True)
            times.append(time.perf_counter() - started)
        return drawn * self.draws * len(self._nets.train) + min(times) * (steps + looks * len(self._held) / 2)

    def draw(self) -> Iterator[int]:
        """Draw all inputs and keep what is needed of them; yields the number of each draw when it is done."""
        feeds = self._nets.samples.feeds
        for draw in range(self.draws):
            for number in self._nets.train:
                feed = feeds[number]
                if draw and self._augment is not None:
                    feed = self._augment(feed, np.random.default_rng((self._seed, draw, number)))
                together = self.draws * len(self._nets.train)
                self._items.append(self._item(feed, number, together, self._stored))
            yield draw

    def loss_at(self, step: int) -> Tensor:
        """The loss of a step: all drawn batches once, then in another order."""
        epoch, place = divmod(step, len(self._items))
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._items))
        return self._loss(self._items[int(order[place])])

    @torch.no_grad()
    def held(self) -> float:
        """The same on held-back inputs."""
        return float(np.mean([float(self._loss(item)) for item in self._held]))

    def held_outputs(self) -> float:
        """The distance of the pruned model's outputs, as it stands, from the dense ones on held-back inputs."""
        nets = self._nets
        program = Program(nets.pruned, list(nets.pruned.graph), list(self._kinds), nets.samples.feeds[0])
        total = 0.0
        for item in self._held:
            ours = program(nets.samples.feeds[item.number])
            mine = {name: from_numpy(np.array(ours[name])) for name in self._kinds}
            total += float(self._apart(mine, item, list(self._kinds)))
        return total / len(self._held)

    def take(self) -> None:
        """Put the numbers into the pruned model."""
        take(self._module, self._part, self._nets.pruned)

    # -- what it is made of

    def _bytes_of_a_draw(self) -> int:
        """Of all inputs drawn once, as they are stored."""
        sides = (self._stored(side) for side in (self._held[0].read, self._held[0].dense))
        return len(self._nets.train) * sum(array.nbytes for side in sides for array in side.values())

    def _given(self, feed: Mapping[str, Array]) -> Values:
        """What the end of the network may read: a batch, and what the leading blocks make of it."""
        return {**feed, **(self._lead(feed) if self._lead is not None else {})}

    def _item(
        self, feed: Feeds, number: int, together: int, stored: Callable[[Mapping[str, Array]], Values] = dict
    ) -> _Item:
        values = self._given(feed)
        read = {str(v.name): values[str(v.name)] for v in self._part.graph.inputs}
        keep = (self._store.kept(stored(side), together) for side in (read, self._dense(feed)))
        return _Item(number, *keep)

    @property
    def _scores_too(self) -> bool:
        """Whether scores of classes are trained.

        Not where the inputs may show none of the classes that count: what brings the scores nearer on these ruins them
        on others. Then the values at the cuts are, of which other classes are made, too.
        """
        return not self._places or self._nets.outputs.shown >= SHOWN

    def _loss(self, item: _Item) -> Tensor:
        """The loss of a batch."""
        mine = dict(zip(self._names, as_tuple(self._module(*tensors(self._part, item.read))), strict=True))
        tokens = self._nets.samples.tokens[item.number]
        total = squares(self._places, [mine[place.name] for place in self._places], item.dense, tokens)
        names = [name for name, kind in self._kinds.items() if self._scores_too or kind not in CLASSES]
        return total + self._apart(mine, item, names)

    def _apart(self, mine: Mapping[str, Tensor], item: _Item, names: Sequence[str]) -> Tensor:
        """How far some outputs are from the dense ones; boxes and scores of a detector together."""
        theirs = {name: from_numpy(np.array(item.dense[name])) for name in names}
        temperature = TEMPERATURE if self._scores_too else 1.0
        return apart(self._kinds, mine, theirs, names, self._detector, temperature)

    def _detector_of(self, outputs: Sequence[str]) -> Detector | None:
        """How boxes and scores are read, where the network is a detector and all of its outputs are compared."""
        item = self._held[0]
        if not all(name in self._kinds for name in outputs):
            return None
        pictures = tuple(np.asarray(array) for array in self._nets.samples.feeds[item.number].values())
        head = recognise(picture_size(pictures), [np.asarray(item.dense[name]) for name in outputs])
        return None if head is None or head.final else Detector(head, tuple(outputs))


def in_16_bits(values: Mapping[str, Array]) -> Values:
    """Large values in half of the room, but for those that float16 changes by over a thousandth of the largest."""
    short = dict(values)
    for name, array in values.items():
        if array.dtype == np.float32 and array.nbytes >= SMALLEST:
            with np.errstate(over="ignore"):
                rounded = array.astype(np.float16)
            if np.abs(rounded - array).max() <= 1e-3 * np.abs(array).max():
                short[name] = rounded
    return short


def first_trained(nets: Pruning) -> int:
    """Return the number of the first block that is trained.

    The blocks before it end in a cut whose relative squared error is below a third of that at the last cut, in front of
    the outputs. It is measured on inputs that are trained on. On others the last cut stands out, since the fits before
    it have learned theirs by heart.
    """
    compared = [at for at in nets.places[:-1] if at]
    if not compared:
        return 0
    names = [place.name for at in compared for place in at]
    programs = [Program(m, list(m.graph), names, nets.samples.feeds[0]) for m in (nets.dense, nets.pruned)]
    totals = dict.fromkeys(names, 0.0)
    for number in nets.train[: len(nets.held)]:
        theirs, ours = (program(nets.samples.feeds[number]) for program in programs)
        for place in (place for at in compared for place in at):
            gap = ours[place.name].astype(np.float64) - place.left(theirs[place.name])
            totals[place.name] += float(np.square(gap).mean()) / place.variance
    last = max(totals[place.name] for place in compared[-1])
    right = [number for number, at in enumerate(nets.places[:-1])
             if at and max(totals[place.name] for place in at) < _NEARLY * last]  # fmt: skip
    return right[-1] + 1 if right else 0
