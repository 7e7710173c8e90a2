"""Does a change of the code change what it writes? SHA-256 of many outputs, recorded once and compared later.

    python benchmarks/same_bytes.py --check                 # the package at hand against the recorded results
    python benchmarks/same_bytes.py --check --only channels # those pairs alone whose name holds a text or pattern
    python benchmarks/same_bytes.py                         # record the pairs that have no result yet
    python benchmarks/same_bytes.py --again --only fpgm     # record pairs anew that were meant to change

The pairs of model and recipe are in same_bytes_pairs.py. The package is used through `onnxprune.prune`,
`onnxprune.save` and its command line alone, so that the same script runs on commits of another layout: set PYTHONPATH
to the checkout to run. For each pair there are three hashes: of the model that went in, of the model that was written
and of what the record says went (kept indices, renamed copies, residual blocks). Settings, figures and paths of the
record are left out. A difference is meant where same_bytes_trace.py has found the commits that made it, each has its
reason in REASONS of same_bytes_pairs.py, and the bytes are still those that it found.

An interrupted recording goes on where it stopped; a check of one commit does so with --state FILE. Pairs whose model is
not at hand (ONNXPRUNE_SHARED names the folder of shared models, by default ../shared) are named and not counted. Every
worker runs on one core with one thread. Pairs that train or compute new weights may differ between processors and
between versions of the packages; the results name those that they were recorded with. `target_latency` is measured, so
that no pair has it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any

from same_bytes_pairs import REASONS, Pair, all_pairs

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results") / "same_bytes.json"
CAUSES = RESULTS.with_name("same_bytes_causes.json")
ZOO = Path(os.environ.get("ONNXPRUNE_SHARED", ROOT.parent / "shared")) / "zoo"
PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch")
SAMPLES = 16  # drawn for models that have no data of their own
RECORDED = ("kept", "renamed", "blocks")
FLOAT, STACK_TRACE = 1, "pkg.torch.onnx.stack_trace"
MEANT = "differs as meant"
Hashes = dict[str, str]


@dataclass(frozen=True)
class Files:
    """A model and its data, as they lie on the disk."""

    model: Path
    samples: Path
    train: Path


# --- models


def files_of(model: str, work: Path) -> Files:
    """Where a model and its data are; those that are made, or whose samples are drawn, lie in the working folder."""
    place, name = model.split("/")
    if place == "models":
        folder = ROOT / "models"
        return Files(folder / f"{name}.onnx", folder / f"{name}.npz", folder / "digits_train.npz")
    samples = work / f"{name}.npz"
    return Files(ZOO / f"{name}.onnx" if place == "zoo" else work / f"{name}.onnx", samples, samples)


def provide(model: str, work: Path) -> str | None:
    """Make the model, and draw its samples, where it has none; return why it cannot be had, None where it is there."""
    files = files_of(model, work)
    place, name = model.split("/")
    if place == "made":
        make(name, files)
    elif not files.model.is_file():
        return f"there is no file {files.model}"
    elif place == "zoo":
        draw(files)
    return None


def make(name: str, files: Files) -> None:
    """Export an architecture of tests/zoo.py without the paths of its sources, and write inputs for it."""
    import numpy as np

    sys.path.insert(0, str(next((ROOT / "tests").rglob("zoo.py")).parent))
    import zoo

    architecture, exporter = name.rsplit("-", 1)
    model = zoo.export(architecture, exporter, cache=False)
    without_stack_traces(model)
    files.model.write_bytes(model.SerializeToString(deterministic=True))
    np.savez(files.samples, **zoo.feeds(architecture, SAMPLES))


def without_stack_traces(message: Any) -> None:
    """Drop the paths and line numbers that PyTorch writes into the nodes of a model."""
    for field, value in message.ListFields():
        if field.name == "metadata_props":
            kept = [entry for entry in value if entry.key != STACK_TRACE]
            if len(kept) < len(value):
                entries = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
                message.ClearField("metadata_props")
                message.metadata_props.extend(entries)
        elif field.message_type is not None and field.name not in ("initializer", "tensors"):
            for part in (value,) if hasattr(value, "ListFields") else value:
                without_stack_traces(part)


def draw(files: Files) -> None:
    """Write inputs of a normal distribution for a model whose inputs are floats; axes of no fixed length get 1."""
    import numpy as np
    import onnx

    rng, arrays = np.random.default_rng(0), {}
    for value in onnx.load(files.model).graph.input:
        kind = value.type.tensor_type
        shape = [SAMPLES, *(dim.dim_value or 1 for dim in kind.shape.dim[1:])]
        if kind.elem_type == FLOAT and kind.shape.dim:
            arrays[value.name] = rng.standard_normal(shape).astype(np.float32)
    np.savez(files.samples, **arrays)


# --- one pair


def hashes_of(pair: Pair, work: Path) -> Hashes:
    """Run a pair and hash what it wrote.

    Raises:
        Exception: Whatever the run raised.
    """
    files = files_of(pair.model, work)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out, record = Path(folder) / "out.onnx", Path(folder) / "record.json"
        if pair.commands:
            run_commands(pair, files, Path(folder))
        else:
            run_prune(pair, files, out, record)
        hashes = {"source": sha256(files.model.read_bytes()), "model": sha256(out.read_bytes())}
        if record.is_file():
            content = json.loads(record.read_text(encoding="utf-8"))
            gone = json.dumps({name: content[name] for name in RECORDED}, sort_keys=True)
            hashes["record"] = sha256(gone.encode())
    return hashes


def run_prune(pair: Pair, files: Files, out: Path, record: Path) -> None:
    """Run a pair by the functions of the package."""
    import onnxprune

    paths = {"calibration": files.samples, "data": files.train, "eval_data": files.samples}
    settings = {name: str(paths[name]) if name in paths else value for name, value in pair.settings.items()}
    onnxprune.save(onnxprune.prune(str(files.model), latency=False, **settings), str(out), record=str(record))


def run_commands(pair: Pair, files: Files, folder: Path) -> None:
    """Run a pair by the command line, in this folder.

    Raises:
        RuntimeError: A command failed; the message is the end of what it printed.
    """
    places = {"model": files.model, "samples": files.samples, "train": files.train}
    places |= {"out": folder / "out.onnx", "record": folder / "record.json"}
    for command in pair.commands:
        words = [word.format(**places) for word in shlex.split(command)]
        done = subprocess.run([sys.executable, "-m", "onnxprune", *words], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode}: {(done.stdout + done.stderr)[-300:]}")


def attempt(pair: Pair, work: Path) -> Hashes:
    """`hashes_of`, but a failure is a result too, under ``error``."""
    try:
        return hashes_of(pair, work)
    except Exception as failure:
        return {"error": f"{type(failure).__name__}: {' '.join(str(failure).split())}"}


def sha256(content: bytes) -> str:
    """The hash as text."""
    return hashlib.sha256(content).hexdigest()


# --- all pairs


def on_one_core(cores: Any) -> None:
    """Keep a worker, and what it starts, on a core of its own, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})


def run_all(pairs: list[Pair], work: Path, jobs: int, tell: Callable[[Pair, Hashes], None]) -> list[str]:
    """Run the pairs, several at a time; `tell` hears of each when it is done.

    Returns:
        A line for each model that is not at hand: its pairs are left out.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    there = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for i in range(jobs):
        cores.put(sorted(there)[i % len(there)])
    with ProcessPoolExecutor(jobs, context, on_one_core, (cores,)) as pool:
        models = sorted({pair.model for pair in pairs})
        missing = dict(zip(models, pool.map(provide, models, [work] * len(models)), strict=True))
        tasks: dict[Future[Hashes], Pair] = {
            pool.submit(attempt, pair, work): pair for pair in pairs if missing[pair.model] is None
        }
        for task in as_completed(tasks):
            tell(tasks[task], task.result())
    return [f"not run: {model}: {why}" for model, why in missing.items() if why is not None]


def chosen(patterns: Iterable[str]) -> list[Pair]:
    """The pairs whose name holds one of these texts or matches one of these patterns; all where there are none."""
    wanted = [pattern if set(pattern) & set("*?") else f"*{pattern}*" for pattern in patterns] or ["*"]
    return [pair for pair in all_pairs() if any(fnmatchcase(pair.name, pattern) for pattern in wanted)]


def commit_of_package() -> str:
    """The commit of the package that is imported, marked where its files were changed since."""
    import onnxprune

    folder = Path(str(onnxprune.__file__)).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or f"unknown ({folder})"


def machine() -> dict[str, str]:
    """What the bits of computed weights may depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"processor": (named or [platform.processor()])[0], "python": platform.python_version(), **versions}


def read(path: Path) -> dict[str, Any]:
    """Results that were written by `write`; empty ones where there is no such file."""
    if not path.is_file():
        return {"machine": machine(), "pairs": {}}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write results, whole or not at all."""
    beside = path.with_suffix(".part")
    ordered = {**results, "pairs": dict(sorted(results["pairs"].items()))}
    beside.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def measure(pairs: list[Pair], path: Path, jobs: int) -> list[str]:
    """Add the hashes of these pairs to a file of results, each as soon as it is there.

    Returns:
        Lines about models that are not at hand and runs that failed.
    """
    results, commit = read(path), commit_of_package()
    done, failed = 0, []

    def tell(pair: Pair, hashes: Hashes) -> None:
        nonlocal done
        done += 1
        if "error" in hashes:
            failed.append(f"failed: {pair.name}: {hashes['error']}")
        results["pairs"][pair.name] = {"commit": commit, **hashes}
        print(f"\r{done}/{len(pairs)}", end="", file=sys.stderr, flush=True)
        write(path, results)

    with tempfile.TemporaryDirectory() as work:
        missing = run_all(pairs, Path(work), jobs, tell)
    print(file=sys.stderr)
    return [*missing, *failed]


def record(pairs: list[Pair], path: Path, jobs: int, *, again: bool) -> int:
    """Record the hashes of these pairs, but for those that have some; return the exit status."""
    known = read(path)
    warn_of_another_machine(known)
    left = pairs if again else [pair for pair in pairs if pair.name not in known["pairs"]]
    lines = measure(left, path, jobs) if left else []
    results = read(path)
    results["pairs"] = {name: hashes for name, hashes in results["pairs"].items() if "error" not in hashes}
    write(path, results)
    print(*lines, f"{len(results['pairs'])} pairs in {path}", sep="\n")
    return 1 if lines else 0


def check(pairs: list[Pair], path: Path, state: Path, jobs: int) -> int:
    """Compare a run of these pairs with what was recorded; return the exit status."""
    recorded, fresh = read(path), of_this_commit(state)
    warn_of_another_machine(recorded)
    new = [pair for pair in pairs if pair.name not in recorded["pairs"]]
    pairs = [pair for pair in pairs if pair.name in recorded["pairs"]]
    left = [pair for pair in pairs if pair.name not in fresh]
    lines = [f"no result is recorded: {pair.name}" for pair in new]
    if left:
        lines += measure(left, state, jobs)
        fresh = of_this_commit(state)
    compared = {pair.name: recorded["pairs"][pair.name] for pair in pairs if pair.name in fresh}
    different = list(differences(compared, fresh, read(CAUSES)["pairs"]))
    meant = [line for line in different if line.startswith(MEANT)]
    print(*lines, *different, f"{len(compared) - len(different)} of {len(compared)} equal", sep="\n")
    if meant:
        print(f"{len(meant)} of the {len(different)} that differ are meant to")
    if len(compared) < len(pairs):
        print(f"{len(pairs) - len(compared)} were not run: their models are not at hand")
    return 1 if len(different) > len(meant) or not compared else 0


def of_this_commit(state: Path) -> dict[str, Hashes]:
    """What an interrupted check has measured of the same commit."""
    commit = commit_of_package()
    return {name: hashes for name, hashes in read(state)["pairs"].items() if hashes["commit"] == commit}


def warn_of_another_machine(results: Mapping[str, Any]) -> None:
    """Say what the results were recorded with, where that is not what is here."""
    here = machine()
    if other := {name: value for name, value in results["machine"].items() if value != here.get(name)}:
        print(f"recorded with {other}, here it is { ({name: here.get(name) for name in other}) }", file=sys.stderr)


def differences(
    recorded: Mapping[str, Hashes], fresh: Mapping[str, Hashes], traced: Mapping[str, Any]
) -> Iterator[str]:
    """A line for each pair that differs, saying in what; it starts with `MEANT` where the reasons are known."""
    for name, then in recorded.items():
        now, cause = fresh[name], traced.get(name)
        parts = [part for part in ("source", "model", "record") if then.get(part) != now.get(part)]
        if "error" in now:
            yield f"differs: {name}: it fails now"
        elif parts and cause is not None and all(cause[part] == now.get(part) for part in ("model", "record")):
            reasons = [REASONS.get(commit, f"{commit} has no reason in REASONS") for commit in cause["commits"]]
            meant = all(commit in REASONS for commit in cause["commits"])
            yield f"{MEANT if meant else 'differs'}: {name}: {', '.join(parts)}: {'; '.join(reasons)}"
        elif parts:
            note = ": the model that goes in is another" if "source" in parts else ""
            yield f"differs: {name}: {', '.join(parts)}{note} (recorded at {then['commit']})"


def main() -> None:
    """Record or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the recorded results; they stay as they are")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="may be given several times")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="record pairs anew that have a result")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--state", type=Path, help="keep what a check measured here, and go on from it")
    parser.add_argument("--list", action="store_true", help="print the names of the pairs")
    arguments = parser.parse_args()
    pairs, start = chosen(arguments.only), time.perf_counter()
    if arguments.list:
        print(*(pair.name for pair in pairs), sep="\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.check:
            state = arguments.state or Path(folder) / "state.json"
            status = check(pairs, arguments.results, state, arguments.jobs)
        else:
            status = record(pairs, arguments.results, arguments.jobs, again=arguments.again)
    print(f"{time.perf_counter() - start:.0f} seconds", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
