"""Recovery without training on MNIST: prune a trained network once, then give it 1,024 unlabelled images.

Test error in percent of LeNet-300-100 and LeNet-5, dense, pruned, and pruned and recovered by each method, for several
seeds. Weights go by magnitude, units by magnitude and by OBC; cuts by units keep exact counts in every group, and "in
steps" (the LeNets) goes there in three steps, each recovered by least squares, with the scores renewed. A ResNet on
Fashion-MNIST, with BatchNorm left in the graph and folded, is the same comparison on a network with residual
connections.

    python benchmarks/recovery_mnist.py --data-root DATA --seeds 0 1 2
    python benchmarks/recovery_mnist.py --data-root DATA --train-only

Models are trained once and lie in --work; results are benchmarks/results/recovery_mnist.json: what is there already
is not measured again.
Test labels are read once for each number and decide nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from lenets import RESULTS, LeNet5, LeNet300, Sets, load_sets, train_dense
from torch import nn

from onnxprune import model_io
from onnxprune.passes import MaskWeights, Normalise, RemoveUnits, Tidy
from onnxprune.passes.remove_dead import compose_kept
from onnxprune.recipe.fields import Effort
from onnxprune.recovery import METHODS, Recovery, recover
from onnxprune.runtime import make_session
from onnxprune.scoring import Criterion, Evidence, find_criterion, prunable_weights, unit_scores
from onnxprune.selection import select_weights
from onnxprune.structure.analysis import analyse
from onnxprune.structure.rewrite import Kept
from onnxprune.structure.structure import Structure
from onnxprune.training import TrainSettings

IMAGES = 1_024
STEPS = 3
LONG = "align, high effort"


class SmallResNet(nn.Module):
    """16-32-64 channels, one residual block each, BatchNorm: 77 K parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return scores


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        plain = stride == 1 and before == after
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.shortcut = nn.Identity() if plain else shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


@dataclass(frozen=True)
class Network:
    """A network and the cuts that are made of it.

    Attributes:
        build: Makes it.
        data: Folder of its data.
        settings: Its training.
        sparsities: Shares of zeroed weights, of all weights together.
        widths: Kept units by the number there are, for each structured cut.
        shares: Shares of units that every group keeps, each a structured cut.
        batchnorm: Export it also with BatchNorm left in the graph.
    """

    build: Callable[[], nn.Module]
    data: str
    settings: TrainSettings
    sparsities: tuple[float, ...] = ()
    widths: tuple[Mapping[int, int], ...] = ()
    shares: tuple[float, ...] = ()
    batchnorm: bool = False


NETWORKS = {
    "lenet-300-100": Network(
        LeNet300, "mnist", TrainSettings(epochs=20, batch_size=128, learning_rate=1e-3, schedule="cosine"),
        (0.75,), ({300: 150, 100: 50}, {300: 75, 100: 25}),
    ),
    "lenet-5": Network(
        LeNet5, "mnist", TrainSettings(epochs=4, batch_size=128, learning_rate=1e-3, schedule="cosine"),
        (0.75,), ({20: 10, 50: 25, 500: 250}, {20: 8, 50: 15, 500: 100}),
    ),
    "resnet-fashion": Network(
        SmallResNet, "fashion_mnist", TrainSettings(epochs=3, batch_size=128, learning_rate=3e-3, schedule="cosine"),
        shares=(0.5,), batchnorm=True,
    ),
}  # fmt: skip


# --- pruning


@dataclass(frozen=True)
class Pruned:
    """A pruned model, what the dense one was before it, and what was kept."""

    dense: ir.Model
    model: ir.Model
    kept: Kept

    def recovered(self, method: str, images: npt.NDArray[Any], effort: Effort = "low") -> tuple[ir.Model, Recovery]:
        """A copy recovered by one method."""
        model = self.model.clone()
        return model, recover(self.dense, model, self.kept, inputs_of(model, images), methods=(method,), effort=effort)


def cut_units(
    path: Path, kept: Mapping[int, int] | float, criterion: str, images: npt.NDArray[Any], steps: int = 1
) -> Pruned:
    """Keep so many units of every group, by the number there are or as a share: those of the best scores.

    In several steps each but the last is recovered by least squares, and the next is scored on what came out.
    """
    dense = prepared(path)
    model, done = dense.clone(), {}
    full = [len(g) for g in analyse(dense.clone()).groups if not g.inexact]
    goals = [max(1, round(kept * n)) if isinstance(kept, float) else kept.get(n, n) for n in full]
    for step in range(1, steps + 1):
        structure = analyse(model)
        groups = [g for g in structure.groups if not g.inexact]
        scores = unit_scores(structure, prunable_weights(structure), groups, scorer(criterion, structure, images), 0)
        removed = np.zeros(structure.terms.count, bool)
        for group, n, goal in zip(groups, full, goals, strict=True):
            order = group.atoms[np.argsort(scores[group.atoms], kind="stable")]
            removed[order[: len(group) - round(n * (goal / n) ** (step / steps))]] = True
        remove = RemoveUnits(structure, removed)
        remove(model)
        Tidy()(model)
        done = compose_kept(done, remove.kept)
        if step < steps:
            recover(dense, model, done, inputs_of(model, images))
    return Pruned(dense, model, done)


def zero_weights(path: Path, sparsity: float, images: npt.NDArray[Any]) -> Pruned:
    """Zero the weights of the least magnitude in the whole network."""
    dense = prepared(path)
    structure = analyse(dense.clone())
    masks = select_weights(prunable_weights(structure), scorer("magnitude", structure, images), sparsity)
    MaskWeights(structure, masks)(structure.model)
    Tidy()(structure.model)
    return Pruned(dense, structure.model, {})


def scorer(criterion: str, structure: Structure, images: npt.NDArray[Any]) -> Criterion:
    """A criterion with the images it looks at."""
    return find_criterion(criterion).on(Evidence(structure, inputs_of(structure.model, images), batch=64))


def inputs_of(model: ir.Model, images: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """The images under the name of the model's input."""
    return {str(model.graph.inputs[0].name): images}


def prepared(path: Path) -> ir.Model:
    """The model in the form that analysis reads."""
    model = model_io.load_any(path)
    Normalise()(model)
    return model


# --- measuring


def test_error(model: ir.Model, test: tuple[npt.NDArray[Any], npt.NDArray[Any]]) -> float:
    """Test error in percent, in ONNX Runtime."""
    session = make_session(model)
    name = session.get_inputs()[0].name
    scores = [session.run(None, {name: test[0][i : i + 500]})[0] for i in range(0, len(test[0]), 500)]
    return 100 * float((np.concatenate(scores).argmax(1) != test[1]).mean())


def compare(pruned: Pruned, images: npt.NDArray[Any], sets: Sets) -> dict[str, Any]:
    """The test error of one pruned model, plain and recovered by each method that has something to do."""
    dense, plain = (round(test_error(m, sets.test), 2) for m in (pruned.dense, pruned.model))
    entry: dict[str, Any] = {"dense": dense, "plain": plain}
    tries: list[tuple[str, str, Effort]] = [(method, method, "low") for method in METHODS]
    for title, method, effort in [*tries, (LONG, "align", "high")]:
        if pruned.kept and method == "obc":
            continue  # least squares, where no weight is zero
        started = time.process_time()
        model, done = pruned.recovered(method, images, effort)
        if not done.steps:
            continue
        entry[title] = round(test_error(model, sets.test), 2)
        entry[f"{title} seconds"] = round(time.process_time() - started, 1)
        entry[f"{title} output error"] = [round(error, 5) for error in (done.before, done.after) if error is not None]
        entry[f"{title} applied"] = f"{sum(s.applied for s in done.steps)} of {len(done.steps)}"
    return entry


@dataclass(frozen=True)
class Cut:
    """One way to prune a network: its name, the criterion, and what does it at once and in steps."""

    title: str
    chosen: str
    once: Callable[[npt.NDArray[Any]], Pruned]
    in_steps: Callable[[npt.NDArray[Any]], Pruned] | None = None

    def measure(self, images: npt.NDArray[Any], sets: Sets) -> dict[str, Any]:
        """Its entry."""
        entry = compare(self.once(images), images, sets)
        if self.in_steps is not None:
            model, _ = self.in_steps(images).recovered("least-squares", images)
            entry["in steps"] = round(test_error(model, sets.test), 2)
        return entry


def cuts(network: Network, path: Path) -> Iterator[Cut]:
    """All cuts of a trained network."""
    for sparsity in network.sparsities:
        once = partial(zero_weights, path, sparsity)
        yield Cut(f"unstructured {1 / (1 - sparsity):g}x", "magnitude", once)
    units: list[tuple[str, Mapping[int, int] | float]] = []
    units += [("units " + "-".join(str(n) for n in w.values()), w) for w in network.widths]
    units += [(f"units {share:.0%} kept", share) for share in network.shares]
    for title, kept in units:
        yield Cut(title, "magnitude", partial(cut_units, path, kept, "magnitude"))
        once = partial(cut_units, path, kept, "obc")
        yield Cut(title, "obc", once, partial(once, steps=STEPS) if network.widths else None)


def run_network(name: str, seed: int, root: Path, work: Path, results: Path) -> None:
    """Measure the cuts of one network and seed that are not among the results, and add each to them."""
    network = NETWORKS[name]
    sets = load_sets(root / network.data)
    source = sets.train.source
    images = source.rows(np.random.default_rng(seed).permutation(source.count)[:IMAGES]).inputs[0]  # type: ignore[attr-defined]
    for path in trained(name, seed, sets, work):
        for cut in cuts(network, path):
            entries = read(results)
            key = {"network": path.stem.rpartition("-seed")[0], "seed": seed, "cut": cut.title, "chosen": cut.chosen}
            if not any(key.items() <= entry.items() for entry in entries):
                entry = key | cut.measure(images, sets)
                print(json.dumps(entry), flush=True)
                write([*entries, entry], results)


def trained(name: str, seed: int, sets: Sets, work: Path) -> list[Path]:
    """The trained network's files: as PyTorch exports it, and with BatchNorm in the graph where that is asked for."""
    network = NETWORKS[name]
    path = work / f"{name}-seed{seed}.onnx"
    kept = work / f"{name}-batchnorm-seed{seed}.onnx"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".partial")
        started = time.process_time()
        modules: list[nn.Module] = []

        def build() -> nn.Module:
            modules.append(network.build())
            return modules[-1]

        train_dense(build, network.settings.model_copy(update={"seed": seed}), sets, beside)
        if network.batchnorm:
            export_unfolded(modules[-1], kept)
        beside.replace(path)
        print(f"trained {path.name} in {time.process_time() - started:.0f} s of CPU time", flush=True)
    return [path, kept] if network.batchnorm else [path]


def export_unfolded(module: nn.Module, path: Path) -> None:
    """Write the module with BatchNormalization nodes in inference mode."""
    axes = {"images": {0: "N"}, "scores": {0: "N"}}
    torch.onnx.export(
        module.eval(), (torch.zeros(1, 1, 28, 28),), path, input_names=["images"], output_names=["scores"],
        dynamic_axes=axes, dynamo=False, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip


# --- results


def read(path: Path) -> list[dict[str, Any]]:
    """All entries so far."""
    entries: list[dict[str, Any]] = json.loads(path.read_text())["entries"] if path.exists() else []
    return entries


def write(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write all entries, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps({"images": IMAGES, "entries": list(entries)}, indent=1) + "\n")
    beside.replace(path)


def summary(entries: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds, one line a cut."""
    lines = []
    for key in dict.fromkeys((e["network"], e["cut"], e["chosen"]) for e in entries):
        group = [e for e in entries if (e["network"], e["cut"], e["chosen"]) == key]
        columns = [k for k in ("dense", "plain", *METHODS, LONG, "in steps") if all(k in e for e in group)]
        means = "  ".join(f"{k} {np.mean([e[k] for e in group]):5.2f}" for k in columns)
        lines.append(f"{key[0]:26} {key[1]:18} {key[2]:9} {means}  n={len(group)}")
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("ONNXPRUNE_DATA")
    parser.add_argument("--data-root", type=Path, default=Path(default) if default else None, help="holds mnist/ ...")
    parser.add_argument("--work", type=Path, default=Path("build/recovery_mnist"), help="folder for the models")
    parser.add_argument("--network", choices=[*NETWORKS, "all"], default="all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-only", action="store_true", help="train what is missing and stop")
    args = parser.parse_args()
    if args.data_root is None:
        parser.error("say where the data are: --data-root or ONNXPRUNE_DATA")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    path = RESULTS / "recovery_mnist.json"
    for name in NETWORKS if args.network == "all" else [args.network]:
        for seed in args.seeds:
            if args.train_only:
                trained(name, seed, load_sets(args.data_root / NETWORKS[name].data), args.work)
                continue
            run_network(name, seed, args.data_root, args.work, path)
    print(summary(read(path)))


if __name__ == "__main__":
    main()
