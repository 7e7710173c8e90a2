"""Tiles over the reduction axis beside tiles over the outputs: which of the two runs faster at the same density.

    python benchmarks/summed_tiles.py --output benchmarks/results/summed_tiles.json

A tile of outputs reads inputs of its own: Gather, a smaller product, Concat. The other way round, a segment of inputs
feeds outputs of its own, and what the segments give to an output is added up. Measured, with four tiles or segments:

    outputs     what `--structure tiles` writes, in the quickest of its ways
    gathered    segments; each result gets a column of zeros, one Gather spreads it over all outputs, Sum adds
    scattered   segments; ScatterElements adds each result to zeros
    unsummed    the products of the segments and no sum: what no way to add could be faster than

A MatMul is also computed the other way round, as tiles of outputs are: of `x^T` whole rows are moved, not numbers.
Which outputs a segment feeds is drawn at random. Latency is that of a form over that of the dense layer: thread CPU
time of the fastest of alternating runs on one thread. All forms that are whole are compared with the dense layer whose
weights are zero where they leave them out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from tiles import CONVOLUTIONS, PRODUCTS, Network

import onnxprune
from onnxprune import runtime

RESULTS = Path(__file__).parent / "results" / "summed_tiles.json"
TILES = 4
DENSITIES = (0.5, 0.25)

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


class Layer:
    """A MatMul or a Conv, and its forms.

    Args:
        data: The shape of what it reads.
        inputs, outputs: Its channels.
        kernel: Height and width of a Conv's; empty for a MatMul.
        turned: Whether a MatMul is computed the other way round, so that whole rows are moved: y^T = W^T x^T.
    """

    def __init__(
        self, data: tuple[int, ...], inputs: int, outputs: int, kernel: tuple[int, ...] = (), *, turned: bool = False
    ) -> None:
        self.data, self.kernel, self.turned = data, kernel, turned
        self.axis = 1 if kernel or turned else len(data) - 1
        values = np.random.default_rng(0).standard_normal((inputs, outputs, *kernel)) / inputs**0.5
        self.weights: Floats = values.astype(np.float32)

    def wide(self, channels: int) -> tuple[int, ...]:
        """The shape of data with so many channels, where they are worked on."""
        shape = [self.data[i] for i in (0, 2, 1)] if self.turned else list(self.data)
        shape[self.axis] = channels
        return tuple(shape)

    def product(self, network: Network, x: str, weights: Floats, name: str) -> str:
        """Add the node that multiplies with some of the weights."""
        if not self.kernel:
            constant = network.constant(f"{name}.w", np.ascontiguousarray(weights.T) if self.turned else weights)
            return network.node("MatMul", [constant, x] if self.turned else [x, constant], name)
        kernels = np.ascontiguousarray(np.moveaxis(weights, 1, 0))
        return network.node("Conv", [x, network.constant(f"{name}.w", kernels)], name, pads=[self.kernel[0] // 2] * 4)

    def dense(self, mask: npt.NDArray[np.bool_]) -> ir.Model:
        """The layer as one node, zero where the mask, inputs x outputs, says so."""
        network = Network()
        plain = Layer(self.data, *self.weights.shape[:2], self.kernel)
        plain.product(network, "x", self.weights * mask.reshape(*mask.shape, *(1 for _ in self.kernel)), "y")
        return network.model(self.data, plain.wide(self.weights.shape[1]))

    def of_segments(self, fed: Sequence[Indices], add: str) -> ir.Model:
        """Segments of inputs; `fed` are the outputs of each."""
        network, outputs = Network(), self.weights.shape[1]
        x = network.node("Transpose", ["x"], "x.turned", perm=[0, 2, 1]) if self.turned else "x"
        segments = np.split(self.weights, len(fed), axis=0)
        pieces = [f"x{i}" for i in range(len(fed))]
        network.node("Split", [x, network.constant("sizes", [len(s) for s in segments])], pieces[0], axis=self.axis)
        network.nodes[-1].output.extend(pieces[1:])
        parts = [self.product(network, x, s[:, f], f"p{x}") for x, s, f in zip(pieces, segments, fed, strict=True)]
        if add == "unsummed":
            last = network.node("Concat", parts, "parts", axis=self.axis)
        else:
            last = (self._gathered if add == "gathered" else self._scattered)(network, parts, fed)
        network.node(
            "Transpose" if self.turned else "Identity", [last], "y", **({"perm": [0, 2, 1]} if self.turned else {})
        )
        width = sum(map(len, fed)) if add == "unsummed" else outputs
        return network.model(self.data, Layer(self.data, 1, 1, self.kernel).wide(width))

    def _gathered(self, network: Network, parts: Sequence[str], fed: Sequence[Indices]) -> str:
        network.constant("zeros", np.zeros(self.wide(1), np.float32))
        spread = []
        for part, mine in zip(parts, fed, strict=True):
            places = np.full(self.weights.shape[1], len(mine))
            places[mine] = np.arange(len(mine))
            longer = network.node("Concat", [part, "zeros"], f"{part}.longer", axis=self.axis)
            places_of = network.constant(f"{part}.i", places)
            spread.append(network.node("Gather", [longer, places_of], f"{part}.spread", axis=self.axis))
        return network.node("Sum", spread, "sum")

    def _scattered(self, network: Network, parts: Sequence[str], fed: Sequence[Indices]) -> str:
        last = network.constant("zeros", np.zeros(self.wide(self.weights.shape[1]), np.float32))
        for part, mine in zip(parts, fed, strict=True):
            line = mine.reshape([-1 if axis == self.axis else 1 for axis in range(len(self.data))])
            places = network.constant(f"{part}.i", np.broadcast_to(line, self.wide(len(mine))).copy())
            inputs = [last, places, part]
            last = network.node("ScatterElements", inputs, f"{part}.sum", axis=self.axis, reduction="add")
        return last


def cases() -> dict[str, Layer]:
    """The layers of tiles.py, by name."""
    layers = {f"MatMul {rows} x {i} x {o}": Layer((1, rows, i), i, o) for rows, i, o in PRODUCTS}
    for size, i, o, kernel in CONVOLUTIONS:
        layers[f"Conv {kernel}x{kernel}, {size}x{size}, {i} to {o}"] = Layer((1, i, size, size), i, o, (kernel, kernel))
    return layers


def measured(layer: Layer, density: float, rounds: int) -> dict[str, Any]:
    """The latency of each form over that of the dense layer, and its difference to that with zeros."""
    rng, (inputs, outputs) = np.random.default_rng(1), layer.weights.shape[:2]
    fed = [np.sort(rng.permutation(outputs)[: round(density * outputs)]) for _ in range(TILES)]
    mask = np.zeros((inputs, outputs), bool)
    for segment, mine in zip(np.split(np.arange(inputs), TILES), fed, strict=True):
        mask[np.ix_(segment, mine)] = True
    whole = layer.dense(np.ones_like(mask))
    run = {"sparsity": 1 - density, "structure": "tiles", "allocation": "uniform"}
    tiled = onnxprune.prune(whole, **run, verification=False, latency=False)
    assert tiled.delivery is not None
    models = {"outputs": (tiled.model, tiled.delivery.plain)}
    ways = {"": layer} if layer.kernel else {"": layer, ", turned": Layer(layer.data, inputs, outputs, turned=True)}
    for words, way in ways.items():
        for add in ("gathered", "scattered", "unsummed"):
            models[add + words] = way.of_segments(fed, add), None if add == "unsummed" else layer.dense(mask)
    feeds = runtime.one_sample(whole, seed=0)
    dense = runtime.make_session(whole, optimize="all", threads=1)
    row: dict[str, Any] = {}
    for form, (model, masked) in models.items():
        session = runtime.make_session(model, optimize="all", threads=1)
        row[form] = round(runtime.alternate(dense, session, feeds, rounds=rounds).least_ratio, 3)
        if masked is not None:
            difference = runtime.compare_outputs(
                runtime.run(runtime.make_session(masked), feeds), runtime.run(session, feeds)
            )
            row["difference"] = max(row.get("difference", 0.0), float(difference.max_rel))
    return row


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure what has this in its name")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows: dict[str, Any] = {}
    for name, layer in cases().items():
        for density in DENSITIES if arguments.only in name else ():
            rows[f"{name}, {density:.0%} of the weights"] = row = measured(layer, density, arguments.rounds)
            print(name, density, row, flush=True)
    arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
