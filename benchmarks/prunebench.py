"""Pruning methods compared in the manner of ShrinkBench (Blalock et al. 2020), on ONNX files.

A network is trained and exported for each data set and seed. Each method prunes that file to compression ratios of 2 to
32, and what is left is trained for a fixed number of steps, the same for all. Ratio 1 is that training without pruning.

    run        train, prune, fine-tune, measure: one line of CSV a result, in benchmarks/results/prunebench/
    report     mean and deviation over the seeds (summary.md) and plots, from the CSV alone
    findings   docs/findings.md, from the CSV alone

    python benchmarks/prunebench.py run --data-root DATA

Resumable: results that are in the CSV are not made again; the trained networks lie in --work. Top-1 is measured on the
test set in ONNX Runtime; 5,000 images held out of the training set pick the best state of every training, and are what
networks are measured on between pruning and training.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from lenets import RESULTS, Sets, data_argument, data_folder, error, load_sets, train_dense
from prunebench_count import Counts, count
from prunebench_findings import write_findings
from prunebench_methods import PATTERNS, Cut, Dense, Method, cut
from prunebench_networks import CHECKED, DATA, MAGNITUDE, MAIN, NETWORKS, RATIOS, Network
from prunebench_report import report
from prunebench_table import Key, Measured, Table, read_tables
from recovery_mnist import export_unfolded
from torch import nn

from onnxprune.packing import pack
from onnxprune.runtime import alternate, make_session
from onnxprune.training import TrainSettings, retrain
from onnxprune.training.reinit import reinitialise

FOLDER = RESULTS / "prunebench"
FINDINGS = Path(__file__).parents[1] / "docs" / "findings.md"
CALIBRATION = 1_024
LATENCY_BATCH = 64
LATENCY_ROUNDS = 11
SHARES = [n / 300 for n in range(1, 301)]
"""Widths that a narrower dense network may have."""
NONE = Method("none", "", "")
NARROW = Method("narrow", "", "")


@dataclass(frozen=True)
class Job:
    """One result to make.

    Attributes:
        method: How the network is pruned.
        target: Compression ratio.
        start, penalty: See `Key`.
    """

    method: Method
    target: int = 1
    start: str = "finetune"
    penalty: str = "none"


# --- what is to be run


def main_jobs(network: Network) -> list[Job]:
    """The dense network, and the methods that all else is compared with."""
    return [Job(NONE, start="trained"), Job(NONE), *method_jobs(m for m in network.methods if m in MAIN)]


def finding_jobs(network: Network) -> list[Job]:
    """What the findings need beside that."""
    jobs = []
    for start in ("reinit", "scratch"):
        jobs += [Job(MAGNITUDE, ratio, start) for ratio in CHECKED]
    jobs += [Job(NARROW, ratio, "scratch") for ratio in CHECKED]
    for penalty in network.penalties:
        jobs += [Job(NONE, start="trained", penalty=penalty)]
        jobs += [Job(MAGNITUDE, ratio, penalty=penalty) for ratio in CHECKED]
    return jobs


def other_jobs(network: Network) -> list[Job]:
    """All further criteria and structures."""
    return method_jobs(m for m in network.methods if m not in MAIN)


def method_jobs(methods: Iterable[Method]) -> list[Job]:
    """Each method at each ratio that it has."""
    return [Job(m, ratio) for m in methods for ratio in (PATTERNS if m.structure == "n:m" else RATIOS)]


PARTS = {"main": main_jobs, "findings": finding_jobs, "others": other_jobs}


def queue(networks: Sequence[str], data: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, str, int, Job]]:
    """All jobs, the most telling ones first."""
    for parts in (("main", "findings"), ("others",)):
        for network in networks:
            for part in parts:
                for each in data:
                    for seed in seeds:
                        yield from ((network, each, seed, job) for job in PARTS[part](NETWORKS[network]))


# --- one network, data set and seed


class Place:
    """One network, data set and seed: its trained files, and everything measured against them."""

    def __init__(self, name: str, data: str, seed: int, sets: Sets, work: Path) -> None:
        self.name, self.data, self.seed, self.sets = name, data, seed, sets
        self.network = NETWORKS[name]
        self.work = work / f"{name}-{data}-seed{seed}"
        self._dense: dict[str, Dense] = {}

    def key(self, job: Job) -> Key:
        """The name of a result."""
        method = job.method
        chosen = (method.structure, method.criterion, method.allocation)
        return Key(self.name, self.data, self.seed, *chosen, job.start, job.penalty, job.target)

    def settings(self, settings: TrainSettings, penalty: str) -> TrainSettings:
        """The settings with this seed and penalty."""
        strength = {penalty: self.network.penalties[penalty]} if penalty != "none" else {}
        return settings.model_copy(update={"seed": self.seed, **strength})

    @property
    def whole_budget(self) -> TrainSettings:
        """Dense training, as long as dense training and fine-tuning together."""
        dense, finetune = self.network.dense, self.network.finetune
        return dense.model_copy(update={"steps": (dense.steps or 0) + (finetune.steps or 0)})

    def dense(self, penalty: str = "none") -> Dense:
        """The network trained from scratch."""
        if penalty not in self._dense:
            path = self.work / f"dense-{penalty}.onnx"
            if not path.exists():
                self.train(1.0, self.settings(self.network.dense, penalty), path)
            self._dense[penalty] = Dense(path, *self.calibration, self.seed)
        return self._dense[penalty]

    @cached_property
    def calibration(self) -> tuple[np.ndarray, np.ndarray]:
        """Training images with their labels, drawn by the seed."""
        source: Any = self.sets.train.source
        rows = source.rows(np.random.default_rng(self.seed).permutation(source.count)[:CALIBRATION])
        return rows.inputs[0], rows.targets[0]

    @cached_property
    def counts(self) -> Counts:
        """Of the dense network."""
        return count(ir.load(self.dense().path), self.feeds(1))

    def feeds(self, batch: int) -> dict[str, np.ndarray]:
        """Some images by the name of the input."""
        return {"images": self.calibration[0][:batch]}

    def train(self, share: float, settings: TrainSettings, path: Path) -> None:
        """Train a network with this share of the width, and export it; it appears when it is whole."""
        modules: list[nn.Module] = []

        def build() -> nn.Module:
            modules.append(self.network.build(share))
            return modules[-1]

        beside = path.with_suffix(".partial")
        train_dense(build, settings, self.sets, beside)
        if self.network.batchnorm:
            export_unfolded(modules[-1], beside)
        beside.replace(path)

    # --- results

    def run(self, job: Job) -> Measured:
        """Make one result."""
        started = time.process_time()
        path = self.work / "result.onnx"
        if job.start == "trained":
            path = self.dense(job.penalty).path
            held, steps = (np.nan, self.accuracy(path)), 0
        elif job.method == NARROW:
            self.train(self.share_of(job.target), self.settings(self.whole_budget, job.penalty), path)
            held, steps = (np.nan, self.accuracy(path)), self.whole_budget.steps or 0
        else:
            settings = self.whole_budget if job.start == "scratch" else self.network.finetune
            held, steps = self.prune_and_train(job, settings, path), settings.steps or 0
        return self.measure(job, path, held, steps, started)

    def accuracy(self, path: Path) -> float:
        """Top-1 on the images that pick states."""
        return 100 - error(path, self.sets.held_out)

    def prune_and_train(self, job: Job, settings: TrainSettings, path: Path) -> tuple[float, float]:
        """Write the pruned, trained model; return top-1 on the images that pick states, before training and after."""
        dense = self.dense(job.penalty)
        made = Cut(dense.structure.model, {}) if job.method == NONE else cut(dense, job.method, job.target)
        model = made.model if job.start == "finetune" else reinitialise(made.model, made.masks, self.seed)
        trained = retrain(
            model, self.sets.train, self.settings(settings, job.penalty), masks=made.masks,
            validation=self.sets.validation,
        )  # fmt: skip
        ir.save(trained.model, path)
        return 100 * (trained.result.start or 0), 100 * (trained.result.best or 0)

    def share_of(self, ratio: int) -> float:
        """The share of the width whose parameters are nearest to all / ratio."""
        with torch.device("meta"):
            sizes = {s: sum(p.numel() for p in self.network.build(s).parameters()) for s in SHARES}
        return min(SHARES, key=lambda s: abs(sizes[s] - self.counts.parameters / ratio))

    def measure(self, job: Job, path: Path, held: tuple[float, float], steps: int, started: float) -> Measured:
        """Everything about a finished file."""
        model, whole = ir.load(path), self.counts
        remaining = count(model, self.feeds(1))
        kind = {"none": "dense", "narrow": "dense", "channels": "shrunk"}.get(job.method.structure, "zeros")
        timed = kind == "shrunk" or job == Job(MAGNITUDE, max(RATIOS))
        packed = 0
        if kind == "zeros":
            ir.save(pack(model)[0], path.with_name("packed.onnx"))
            packed = path.with_name("packed.onnx").stat().st_size
        return Measured(
            kind=kind,
            parameters=whole.parameters,
            nonzero=remaining.nonzero,
            ratio=whole.parameters / remaining.nonzero,
            macs=whole.macs,
            nonzero_macs=remaining.nonzero_macs,
            speedup=whole.macs / remaining.nonzero_macs,
            top1=100 - error(path, self.sets.test),
            validation_pruned=held[0],
            validation=held[1],
            file_bytes=path.stat().st_size,
            packed_bytes=packed,
            latency=self.latency(path) if timed else np.nan,
            steps=steps,
            seconds=time.process_time() - started,
        )

    def latency(self, path: Path) -> float:
        """ONNX Runtime time over the dense network's: one thread, alternating runs."""
        a, b = (make_session(each, threads=1) for each in (self.dense().path, path))
        return alternate(a, b, self.feeds(LATENCY_BATCH), rounds=LATENCY_ROUNDS).ratio


# --- all of them


def run(root: dict[str, Path], work: Path, networks: Sequence[str], seeds: Sequence[int]) -> None:
    """Make all results that are not there yet."""
    sets: dict[str, Sets] = {}
    place: Place | None = None
    jobs = list(queue(networks, list(root), seeds))
    for number, (network, data, seed, job) in enumerate(jobs, 1):
        if place is None or (place.name, place.data, place.seed) != (network, data, seed):
            if data not in sets:
                sets[data] = load_sets(root[data])
            place = Place(network, data, seed, sets[data], work)
            table = Table(FOLDER / f"{network}-{data}.csv")
        key = place.key(job)
        if key in table.rows:
            continue
        done = place.run(job)
        table.add(key, done)
        what = f"{network} {data} seed {seed} {' '.join(key[3:8])} {job.target}x"
        print(
            f"[{number}/{len(jobs)}] {what}: {done.ratio:.2f}x {done.speedup:.2f}x, "
            f"top-1 {done.top1:.2f} % (validation {done.validation_pruned:.2f} -> {done.validation:.2f} %), "
            f"{done.seconds:.1f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["run", "report", "findings"])
    parser.add_argument("--work", type=Path, default=Path("build/prunebench"), help="folder for the models")
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--data", choices=DATA, nargs="+", default=list(DATA))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    data_argument(parser)
    args = parser.parse_args()
    if args.part == "report":
        report(read_tables(FOLDER), FOLDER)
    elif args.part == "findings":
        write_findings(read_tables(FOLDER), FINDINGS)
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        root = {name: data_folder(parser, args, DATA[name]) for name in args.data}
        run(root, args.work, args.network, args.seeds)


if __name__ == "__main__":
    main()
