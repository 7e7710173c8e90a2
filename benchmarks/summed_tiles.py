"""Tiles over the reduction axis beside tiles over the outputs: which of the two runs faster at the same density.

    python benchmarks/summed_tiles.py --output benchmarks/results/summed_tiles.json

A tile of outputs reads inputs of its own: Gather, a smaller product, Concat. The other way round, a segment of inputs
feeds outputs of its own, and what the segments give to an output is added up. Measured, with four tiles or segments:

    outputs     the form that `--structure tiles` writes
    gathered    segments; each result gets a column of zeros, one Gather spreads it over all outputs, Sum adds
    scattered   segments; ScatterElements adds each result to zeros
    unsummed    the products of the segments and no sum: what no way to add could be faster than

Which inputs or outputs are kept is drawn at random. Latency is that of a form over that of the dense layer: thread CPU
time of the fastest of alternating runs on one thread. All forms but the last are compared with the dense layer whose
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

from onnxprune import runtime

RESULTS = Path(__file__).parent / "results" / "summed_tiles.json"
TILES = 4
DENSITIES = (0.5, 0.25)

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


class Layer:
    """A MatMul, or a Conv: the shape of what it reads, and its weights as inputs x outputs x kernel."""

    def __init__(self, data: tuple[int, ...], inputs: int, outputs: int, kernel: tuple[int, ...] = ()) -> None:
        self.data, self.kernel, self.axis = data, kernel, 1 if kernel else len(data) - 1
        values = np.random.default_rng(0).standard_normal((inputs, outputs, *kernel)) / inputs**0.5
        self.weights: Floats = values.astype(np.float32)

    def wide(self, channels: int) -> tuple[int, ...]:
        """The shape of data with so many channels."""
        return (*self.data[: self.axis], channels, *self.data[self.axis + 1 :])

    def product(self, network: Network, x: str, weights: Floats, name: str) -> str:
        """Add the node that multiplies with some of the weights."""
        if not self.kernel:
            return network.node("MatMul", [x, network.constant(f"{name}.w", weights)], name)
        turned = np.ascontiguousarray(np.moveaxis(weights, 1, 0))
        return network.node("Conv", [x, network.constant(f"{name}.w", turned)], name, pads=[self.kernel[0] // 2] * 4)

    def gather(self, network: Network, x: str, indices: Indices, name: str) -> str:
        """Add a Gather of channels."""
        return network.node("Gather", [x, network.constant(f"{name}.i", indices)], name, axis=self.axis)

    def dense(self, mask: npt.NDArray[np.bool_]) -> ir.Model:
        """The layer as one node, zero where the mask, inputs x outputs, says so."""
        network = Network()
        masked = self.weights * mask.reshape(*mask.shape, *(1 for _ in self.kernel))
        self.product(network, "x", masked, "y")
        return network.model(self.data, self.wide(self.weights.shape[1]))

    def of_outputs(self, kept: Sequence[Indices]) -> ir.Model:
        """Tiles of outputs; `kept` are the inputs of each."""
        network, parts = Network(), []
        for i, (inputs, tile) in enumerate(zip(kept, np.split(self.weights, len(kept), axis=1), strict=True)):
            parts.append(self.product(network, self.gather(network, "x", inputs, f"x{i}"), tile[inputs], f"p{i}"))
        network.node("Concat", parts, "y", axis=self.axis)
        return network.model(self.data, self.wide(self.weights.shape[1]))

    def of_segments(self, fed: Sequence[Indices], add: str) -> ir.Model:
        """Segments of inputs; `fed` are the outputs of each."""
        network, outputs = Network(), self.weights.shape[1]
        segments = np.split(self.weights, len(fed), axis=0)
        pieces = [f"x{i}" for i in range(len(fed))]
        network.node("Split", ["x", network.constant("sizes", [len(s) for s in segments])], pieces[0], axis=self.axis)
        network.nodes[-1].output.extend(pieces[1:])
        parts = [self.product(network, x, s[:, f], f"p{x}") for x, s, f in zip(pieces, segments, fed, strict=True)]
        if add == "unsummed":
            network.node("Concat", parts, "y", axis=self.axis)
            return network.model(self.data, self.wide(sum(map(len, fed))))
        if add == "gathered":
            network.constant("zeros", np.zeros(self.wide(1), np.float32))
            spread = []
            for part, mine in zip(parts, fed, strict=True):
                places = np.full(outputs, len(mine))
                places[mine] = np.arange(len(mine))
                longer = network.node("Concat", [part, "zeros"], f"{part}.longer", axis=self.axis)
                spread.append(self.gather(network, longer, places, f"{part}.spread"))
            network.node("Sum", spread, "y")
        else:
            last = network.constant("zeros", np.zeros(self.wide(outputs), np.float32))
            for i, (part, mine) in enumerate(zip(parts, fed, strict=True)):
                line = mine.reshape([-1 if axis == self.axis else 1 for axis in range(len(self.data))])
                places = network.constant(f"{part}.i", np.broadcast_to(line, self.wide(len(mine))).copy())
                name = "y" if i == len(fed) - 1 else f"{part}.sum"
                last = network.node("ScatterElements", [last, places, part], name, axis=self.axis, reduction="add")
        return network.model(self.data, self.wide(outputs))


def cases() -> dict[str, Layer]:
    """The layers of tiles.py, by name."""
    layers = {f"MatMul {rows} x {i} x {o}": Layer((1, rows, i), i, o) for rows, i, o in PRODUCTS}
    for size, i, o, kernel in CONVOLUTIONS:
        layers[f"Conv {kernel}x{kernel}, {size}x{size}, {i} to {o}"] = Layer((1, i, size, size), i, o, (kernel, kernel))
    return layers


def measured(layer: Layer, density: float, rounds: int) -> dict[str, Any]:
    """The latency of each form over that of the dense layer, and its difference to that with zeros."""
    rng, (inputs, outputs) = np.random.default_rng(1), layer.weights.shape[:2]

    def drawn(count: int) -> list[Indices]:
        return [np.sort(rng.permutation(count)[: round(density * count)]) for _ in range(TILES)]

    kept, fed = drawn(inputs), drawn(outputs)
    masks = np.zeros((2, inputs, outputs), bool)
    for i in range(TILES):
        masks[0][np.ix_(kept[i], np.arange(outputs)[i * outputs // TILES : (i + 1) * outputs // TILES])] = True
        masks[1][np.ix_(np.arange(inputs)[i * inputs // TILES : (i + 1) * inputs // TILES], fed[i])] = True
    models = {"outputs": (layer.of_outputs(kept), masks[0])}
    models |= {add: (layer.of_segments(fed, add), masks[1]) for add in ("gathered", "scattered", "unsummed")}
    feeds = runtime.one_sample(models["outputs"][0], seed=0)
    dense = runtime.make_session(layer.dense(np.ones((inputs, outputs), bool)), optimize="all", threads=1)
    row: dict[str, Any] = {}
    for form, (model, mask) in models.items():
        session = runtime.make_session(model, optimize="all", threads=1)
        row[form] = round(runtime.alternate(dense, session, feeds, rounds=rounds).least_ratio, 3)
        if form != "unsummed":
            masked = runtime.run(runtime.make_session(layer.dense(mask)), feeds)
            row[f"{form}: difference"] = float(runtime.compare_outputs(masked, runtime.run(session, feeds)).max_rel)
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
