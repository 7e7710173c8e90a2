"""Damage files in thousands of ways and give them to every command: one sentence and status 0, 1 or 2 each time.

    python benchmarks/damaged_files.py --count 2000      # go on from where the last call stopped
    python benchmarks/damaged_files.py --only 123        # one variant again, with what it said
    python benchmarks/damaged_files.py --faults          # those that had a fault again: is it mended?

Ten models: dense layers, convolutions with BatchNormalization, a grouped one, an LSTM, quantised numbers, attention,
an If, external data, a packed model and one with sparse initializers. Damaged are the model, its external data, an
.npz, a record, a recipe, or a file of a checkpoint: bits are flipped, bytes replaced, parts cut out, repeated, or cut
off at the end, and lengths changed. The damage, and the command that meets it, follow from the number alone.

Each command runs in a fork of a process that has imported everything, with 60 seconds and 4 GB of address space
beyond what that process has. A fault is any other status, a signal, more than one sentence on standard error, a
traceback, "an error inside onnxprune", or a file that is left in the folder after a status other than 0, outside a
checkpoint that the sentence names.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
RESULTS = Path(__file__).with_name("results") / "damaged_files.json"
SECONDS, BYTES = 60, 4 << 30
KINDS = ("flip", "flips", "replace", "zero", "cut out", "repeat", "truncate", "length")
_HEAD = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'

TEXTS: dict[str, tuple[str, dict[str, tuple[int, ...]], tuple[int, ...]]] = {
    "dense": (
        "g (float[N, 8] x) => (float[N, 4] y) { h = Gemm(x, w1, b1) r = Relu(h) y = Gemm(r, w2, b2) }",
        {"w1": (8, 32), "b1": (32,), "w2": (32, 4), "b2": (4,)}, (8,),
    ),
    "convolutions": (
        "g (float[N, 3, 8, 8] x) => (float[N, 4] y) { a = Conv <pads = [1, 1, 1, 1]> (x, w1) "
        "b = BatchNormalization(a, s, s, s, v) c = Relu(b) d = GlobalAveragePool(c) e = Flatten(d) y = Gemm(e, w2) }",
        {"w1": (16, 3, 3, 3), "s": (16,), "v": (16,), "w2": (16, 4)}, (3, 8, 8),
    ),
    "grouped": (
        "g (float[N, 4, 6, 6] x) => (float[N, 2, 6, 6] y) { a = Conv(x, w1) b = Relu(a) "
        "c = Conv <group = 2> (b, w2) d = Add(b, c) y = Conv(d, w3) }",
        {"w1": (8, 4, 1, 1), "w2": (8, 4, 1, 1), "w3": (2, 8, 1, 1)}, (4, 6, 6),
    ),
    "recurrent": (
        "g (float[5, N, 8] x) => (float[5, N, 2] y) { a, h, c = LSTM <hidden_size = 6> (x, w, r, b) "
        "s = Squeeze(a, one) y = MatMul(s, w2) }",
        {"w": (1, 24, 8), "r": (1, 24, 6), "b": (1, 48), "w2": (6, 2)}, (5, 8),
    ),
    "quantised": (
        "g (float[N, 8] x) => (float[N, 4] y) { q, s, z = DynamicQuantizeLinear(x) a = MatMulInteger(q, w8, z) "
        "f = Cast <to = 1> (a) b = Mul(f, s) c = Relu(b) y = MatMul(c, w2) }",
        {"w2": (16, 4)}, (8,),
    ),
    "attention": (
        "g (float[N, 5, 8] x) => (float[N, 5, 2] y) { a = com.microsoft.Attention <num_heads = 3> (x, w1, b1) "
        "c = MatMul(a, w2) y = MatMul(c, w3) }",
        {"w1": (8, 36), "b1": (36,), "w2": (12, 8), "w3": (8, 2)}, (5, 8),
    ),
    "branches": (
        "g (float[N, 8] x, bool flag) => (float[N, 4] y) { h = MatMul(x, w1) i = If (flag) <then_branch = t () => "
        "(float[N, 16] m) { m = Relu(h) }, else_branch = e () => (float[N, 16] n) { n = Neg(h) }> y = MatMul(i, w2) }",
        {"w1": (8, 16), "w2": (16, 4)}, (8,),
    ),
}  # fmt: skip
MODELS = (*TEXTS, "external", "packed", "sparse")
COMMANDS: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", "model.onnx"),
    "weights": ("model.onnx", "--sparsity", "0.5", "-o", "out.onnx", "--record", "r.json", "--report", "r.html"),
    "channels": ("model.onnx", "--structure", "channels", "--sparsity", "0.5", "-o", "out.onnx", "--json"),
    "calibrated": ("model.onnx", "--structure", "channels", "--sparsity", "0.5", "--calibration", "data.npz"),
    "int8": ("model.onnx", "--sparsity", "0.5", "--quantize", "int8", "--calibration", "data.npz"),
    "pack": ("model.onnx", "--sparsity", "0.5", "--pack", "-o", "out.onnx"),
    "verify": ("verify", "model.onnx", "pruned.onnx", "--record", "record.json"),
    "verify the result": ("verify", "good.onnx", "model.onnx"),
    "compare": ("compare", "model.onnx", "good.onnx"),
    "sensitivity": ("sensitivity", "model.onnx", "--levels", "0.5", "--calibration", "data.npz"),
    "unpack": ("unpack", "model.onnx"),
    "run": ("run", "recipe.toml", "model.onnx", "-o", "out.onnx"),
    "retrain": ("model.onnx", "--sparsity", "0.5", "--retrain", "--data", "data.npz", "--steps", "2"),
    "resume": ("model.onnx", "--sparsity", "0.5", "--retrain", "--data", "data.npz", "--steps", "2", "--iterations",
               "2", "--checkpoint", "state", "--resume", "--force", "-o", "out.onnx"),
}  # fmt: skip
READERS = {
    "data.npz": ("calibrated", "int8", "retrain"), "record.json": ("verify",), "recipe.toml": ("run",),
    "state/run.json": ("resume",), "state/state.safetensors": ("resume",), "state/iteration-1.onnx": ("resume",),
    "pruned.onnx": ("verify",),
}  # fmt: skip


# --- good files


def model_of(name: str) -> onnx.ModelProto:
    text, shapes, _ = TEXTS.get(name, TEXTS["dense"])
    proto = parser.parse_model(f"{_HEAD} {text}")
    rng = np.random.default_rng(0)
    for weight, shape in shapes.items():
        array = np.abs(rng.standard_normal(shape)).astype(np.float32) + 0.1 if weight == "v" else None
        array = rng.standard_normal(shape).astype(np.float32) if array is None else array
        proto.graph.initializer.append(numpy_helper.from_array(array, weight))
    if name == "quantised":
        proto.graph.initializer.append(numpy_helper.from_array(rng.integers(-99, 99, (8, 16)).astype(np.int8), "w8"))
    if name == "recurrent":
        proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    return proto


def make(name: str, folder: Path) -> None:
    """Write one model and everything that commands read beside it."""
    folder.mkdir(parents=True)
    plain = model_of(name)
    onnx.save(plain, folder / "good.onnx")
    if name == "external":
        onnx.save(plain, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    elif name in ("packed", "sparse"):
        flag = "--pack" if name == "packed" else "--sparse-initializers"
        must(("good.onnx", "--sparsity", "0.9", flag, "-o", "model.onnx"), folder)
    else:
        onnx.save(plain, folder / "model.onnx")
    text, _, shape = TEXTS.get(name, TEXTS["dense"])
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((16, *shape)).astype(np.float32), "label": np.arange(16) % 4}
    if "flag" in text:
        feeds["flag"] = np.array(True)
    if name == "recurrent":
        feeds["x"] = np.moveaxis(feeds["x"], 0, 1)
    np.savez(folder / "data.npz", **feeds)
    (folder / "recipe.toml").write_text(
        'sparsity = 0.5\nstructure = "channels"\nrequire = ["sparsity>=0.1"]\nseed = 3\n'
    )
    source = "good.onnx" if name in ("packed", "sparse") else "model.onnx"
    must((source, "--sparsity", "0.5", "-o", "pruned.onnx", "--record", "record.json"), folder)
    if name in ("dense", "convolutions", "external"):
        stop_in_training(folder)


def stop_in_training(folder: Path) -> None:
    """Leave the state of a run that was stopped after its first iteration."""
    from onnxprune.errors import OnnxPruneError
    from onnxprune.pipeline import checkpoint

    save = checkpoint.Store.save

    def save_and_stop(self: Any, state: Any) -> None:
        save(self, state)
        raise OnnxPruneError("stopped")

    arguments = tuple(part for part in COMMANDS["resume"] if part != "--resume")
    checkpoint.Store.save = save_and_stop  # type: ignore[method-assign]
    try:
        run(arguments, folder)
    finally:
        checkpoint.Store.save = save  # type: ignore[method-assign]
    if not (folder / "state" / "state.safetensors").exists():
        raise SystemExit(f"no state was left: {(folder.parent / 'err').read_text()}")


# --- damage


def damaged(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    if not data:
        return bytes([0])
    # Half of the damage lies in the first kilobyte, where the structure of most files is.
    place = int(rng.integers(len(data) if rng.random() < 0.5 else min(len(data), 1024)))
    size = int(rng.integers(1, 1 + max(1, min(64, len(data) - place))))
    if kind == "flip":
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == "flips":
        for spot in rng.integers(len(data), size=16):
            data[int(spot)] ^= 1 << int(rng.integers(8))
    elif kind == "replace":
        data[place : place + size] = rng.integers(0, 256, size).astype(np.uint8).tobytes()
    elif kind == "zero":
        data[place : place + size] = bytes(size)
    elif kind == "cut out":
        del data[place : place + size]
    elif kind == "repeat":
        data[place:place] = data[place : place + size]
    elif kind == "truncate":
        del data[place:]
    else:
        data[place] = (0xFF, 0x7F, 0x80, 0x00)[int(rng.integers(4))]
    return bytes(data)


def variant(number: int, work: Path) -> tuple[str, str, str, str]:
    """Model, file, damage and command of a number; the files of the model must lie in the working folder."""
    rng = np.random.default_rng((5, number))
    name = MODELS[number % len(MODELS)]
    kind = KINDS[int(rng.integers(len(KINDS)))]
    files = ["model.onnx"] * 6 + ["data.npz", "record.json", "recipe.toml", "pruned.onnx"]
    if name == "external":
        files += ["weights.bin"] * 4
    state = work / name / "good" / "state"
    if state.exists():
        files += [f"state/{path.name}" for path in sorted(state.iterdir())]
    file = str(rng.choice(files))
    commands = READERS.get(file) or [c for c in COMMANDS if c != "resume"]
    return name, file, kind, str(rng.choice(commands))


# --- running


def run(arguments: tuple[str, ...], folder: Path, *, limited: bool = False) -> int:
    """Run the command line in a fork; returns its status, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.chdir(folder)
            for name, number in (("out", 1), ("err", 2)):
                os.dup2(os.open(folder.parent / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            if limited:
                used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
                resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
            from onnxprune.cli import main

            main(list(arguments))
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def must(arguments: tuple[str, ...], folder: Path) -> None:
    if run(arguments, folder):
        raise SystemExit(f"{arguments}: {(folder.parent / 'err').read_text()}")


def judge(number: int, work: Path) -> tuple[str, str, str]:
    """Run one variant; returns how it ended, what is wrong ("" where nothing is), and what it said."""
    name, file, kind, command = variant(number, work)
    place = work / name / "place"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(work / name / "good", place)
    path = place / file
    path.write_bytes(damaged(path.read_bytes(), kind, np.random.default_rng((6, number))))
    before = {p for p in place.rglob("*") if "state" not in p.parts}
    status = run(COMMANDS[command], place, limited=True)
    said = (work / name / "err").read_bytes().decode(errors="replace")
    about = f"{name}, {file}, {kind}, {command}"
    new = {p for p in place.rglob("*") if "state" not in p.parts} - before
    named = {p.name for p in new if p.is_dir() and f"'{p.name}/" in said}  # a checkpoint that the sentence speaks of
    left = sorted(p.name for p in new if not named & set(p.parts))
    if status not in (0, 1, 2):
        return about, f"ended with {status}", said
    sentences = [line for line in said.splitlines() if line.startswith("onnxprune:")]
    if status and (len(sentences) != 1 or "an error inside" in said or "Traceback" in said):
        return about, f"status {status} with {len(sentences)} sentences", said
    if status and left:
        return about, f"status {status}, but left {left}", said
    return f"status {status}", "", said


def prepare() -> None:
    """Import what a fork would import for itself each time."""
    import torch

    import onnxprune.cli
    import onnxprune.pipeline.run
    import onnxprune.pipeline.trainer
    import onnxprune.report.html
    import onnxprune.runtime.quantise  # noqa: F401

    torch.set_num_threads(1)
    onnxprune.cli.app.register()


def faults_again(state: dict[str, Any], work: Path) -> None:
    """Run the variants that had a fault once more; those that have none now are mended, and count as they end."""
    outcomes = Counter(state["outcomes"])
    for number in list(state["faults"]):
        outcome, wrong, _ = judge(int(number), work)
        print(number, wrong or "mended", flush=True)
        if not wrong:
            state.setdefault("mended", {})[number] = state["faults"].pop(number)
            outcomes["fault"] -= 1
            outcomes[outcome] += 1
    state["outcomes"] = {name: count for name, count in sorted(outcomes.items()) if count}
    RESULTS.write_text(json.dumps(state, indent=1) + "\n")


def main() -> None:
    description = argparse.RawDescriptionHelpFormatter
    parser_ = argparse.ArgumentParser(description=__doc__, formatter_class=description)
    parser_.add_argument("--count", type=int, default=2000)
    parser_.add_argument("--minutes", type=float, default=1e9)
    parser_.add_argument("--only", type=int, nargs="*")
    parser_.add_argument("--faults", action="store_true", help="those again that had a fault")
    arguments = parser_.parse_args()
    prepare()
    stop = time.monotonic() + 60 * arguments.minutes
    state: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    done, faults = int(state.get("variants", 0)), dict(state.get("faults", {}))
    counts: dict[str, Counter[str]] = {
        what: Counter(state.get(what, {})) for what in ("outcomes", "models", "files", "damage", "commands")
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in MODELS:
            make(name, work / name / "good")
        for number in arguments.only or []:
            print(number, *variant(number, work), *judge(number, work), sep="\n  ")
        if arguments.faults:
            faults_again(state, work)
        while not arguments.only and not arguments.faults and done < arguments.count and time.monotonic() < stop:
            outcome, wrong, said = judge(done, work)
            if wrong:
                faults[str(done)] = f"{outcome}: {wrong}: {said[-300:]}"
                print(done, faults[str(done)], flush=True)
            counts["outcomes"]["fault" if wrong else outcome] += 1
            for what, value in zip(("models", "files", "damage", "commands"), variant(done, work), strict=True):
                counts[what][value] += 1
            done += 1
            if done % 50 == 0 or done == arguments.count or time.monotonic() >= stop:
                sums = {what: dict(sorted(count.items())) for what, count in counts.items()}
                state |= {"variants": done, **sums, "faults": faults}
                RESULTS.write_text(json.dumps(state, indent=1) + "\n")
    print(f"{done} variants: {dict(counts['outcomes'])}")


if __name__ == "__main__":
    main()
