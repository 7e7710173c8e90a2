"""What pruning itself costs, beside Torch-Pruning: CPU seconds of analysis, choice and rewriting, and peak memory.

    pip install torch torchvision torch-pruning==1.6.1
    python benchmarks/own_times.py [--tree FOLDER] [--only vit_b_16 ...]  ->  benchmarks/results/own_times.json

The ten networks of depgraph.py, half of the parameters by whole units. Each figure is the least of several processes of
their own, all of one network in turn, again and again: what else runs on a machine only adds to it.

    seconds           `onnxprune.prune` of a model in memory, without verification and latency
    loading           what of it makes a checked graph of the protobuf; the rest is analysis, choice and rewriting
    seconds before    the same by the package in another working tree, given by --tree, whose commit is noted; without
                      one, what an earlier run found
    Torch-Pruning     its trace and its pruning at ratio 0.5; where it fails, the limit is twice loading and saving
    load and save     `onnx.load` and `onnx.save`
    peak / file       the largest memory of a run with verification, less that of a process which only imported the
                      package, over the bytes of the file
    peak MB           the same in megabytes: of small files the values of two batches are most of it
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from depgraph import PUBLISHED, _quiet, _torchvision_without_operators, export

RESULTS = Path(__file__).resolve().parent / "results" / "own_times.json"
HERE = Path(__file__).resolve().parent

OURS = """
import sys, time, onnx, onnxprune
run = dict(structure="channels", sparsity=0.5, allow_inexact=True, verification=False, latency=False)
model = onnx.load(sys.argv[1])
onnxprune.prune(onnx.load(sys.argv[2]), **{**run, "sparsity": 0.1})  # imports what is needed
start = time.process_time()
result = onnxprune.prune(model, **run)
print(time.process_time() - start, result.seconds["load"])
"""

THEIRS = """
import sys, time
sys.path.insert(0, sys.argv[3])
from depgraph import _torchvision_without_operators, architecture
library = _torchvision_without_operators()
import torch, torch_pruning as tp
model, image = architecture(sys.argv[2]), torch.zeros(1, 3, 224, 224)
heads = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1000]
start = time.process_time()
importance = tp.importance.GroupMagnitudeImportance(p=2)
tp.pruner.BasePruner(model, image, importance, pruning_ratio=0.5, ignored_layers=heads).step()
print(time.process_time() - start)
"""

LOAD_AND_SAVE = """
import sys, time, onnx
start = time.process_time()
onnx.save(onnx.load(sys.argv[1]), sys.argv[1] + ".copy")
print(time.process_time() - start)
"""

PEAK = """
import sys, onnxprune
if sys.argv[2] == "run":
    run = dict(structure="channels", sparsity=0.5, allow_inexact=True, latency=False)
    onnxprune.prune(sys.argv[1], accept_unproved=True, **run)  # the head of torchvision's ViT is zero: nothing shows
else:
    from onnxprune.pipeline import run
print(1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]))
"""


def figures(script: str, *arguments: object, tree: Path = HERE.parent) -> list[float] | str:
    """The numbers that a script prints in a process of its own, or why it does not."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tempfile.gettempdir())
    if done.returncode:
        return f"fails: {(done.stderr.strip().splitlines() or ['killed'])[-1][:100]}"
    return [float(number) for number in done.stdout.split()]


def least(values: list[list[float] | str]) -> list[float] | str:
    """The numbers of the process whose first is the least, to three places; where there is none, why."""
    numbers = [value for value in values if not isinstance(value, str)]
    return [round(number, 3) for number in min(numbers)] if numbers else values[0]


def commit_of(tree: Path) -> str:
    """The commit that a working tree holds."""
    command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def row_of(name: str, path: Path, small: Path, before: Path | None, times: int) -> dict[str, Any]:
    """The figures of one network."""
    asked: dict[str, Callable[[], list[float] | str]] = {"seconds": lambda: figures(OURS, path, small)}
    if before is not None:
        asked["seconds before"] = lambda: figures(OURS, path, small, tree=before)
    if PUBLISHED[name] is not None:
        asked["Torch-Pruning"] = lambda: figures(THEIRS, path, name, HERE)
    asked["load and save"] = lambda: figures(LOAD_AND_SAVE, path)
    tries = [{kind: ask() for kind, ask in asked.items()} for _ in range(times)]
    found = {kind: least([one[kind] for one in tries]) for kind in asked}
    row: dict[str, Any] = {kind: numbers if isinstance(numbers, str) else numbers[0] for kind, numbers in found.items()}
    if not isinstance(found["seconds"], str):
        row["loading"] = found["seconds"][1]
    row.setdefault("Torch-Pruning", "fails (depgraph.json)")
    idle, peak = (figures(PEAK, path, what) for what in ("import", "run"))
    if not isinstance(idle, str) and not isinstance(peak, str):
        row["peak / file"] = round((peak[0] - idle[0]) / path.stat().st_size, 2)
        row["peak MB"] = round((peak[0] - idle[0]) / 1e6)
    return row


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--tree", type=Path, help="a working tree of another commit, to compare with")
    parser.add_argument("--times", type=int, default=3, help="processes of each kind")
    arguments = parser.parse_args()
    keep_alive = _torchvision_without_operators()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    small = HERE.parent / "models" / "digits_resnet.onnx"
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            with _quiet():
                path = export(name, "legacy", Path(folder))
            known = {} if arguments.tree else results.get(name, {})
            before = {kind: known[kind] for kind in ("seconds before", "before") if kind in known}
            new = row_of(name, path, small, arguments.tree and arguments.tree.resolve(), arguments.times)
            results[name] = before | new
        results[name] |= {"commit": commit_of(HERE.parent), "times": arguments.times}
        if arguments.tree:
            results[name]["before"] = commit_of(arguments.tree)
        print(name, json.dumps(results[name]), flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    del keep_alive


if __name__ == "__main__":
    main()
