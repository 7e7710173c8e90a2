"""Kill runs at random moments, and look at what they leave.

    python benchmarks/kills.py --count 1000      # go on from where the last call stopped
    python benchmarks/kills.py --minutes 5       # stop after so many minutes

Runs write every kind of output: a model with embedded weights or external data, packed, with sparse initializers,
quantised to int8, retrained or fitted with a checkpoint (killed, then resumed or started anew); beside it a record, a
report and a recipe. Half of the runs find no outputs, half replace those of an earlier run. Half of the moments lie
anywhere in the run, half near its end, where files are written. Everything follows from the number of the kill, but
for the speed of the machine.

After SIGKILL: the inputs are as they were; each output is missing (where there was none), the old one or a new one,
whole; the record is that of the model, or a manifest beside them says that the next run has to finish the set. Then
another run in the folder: exit status 0, the set complete, nothing left but inputs and outputs, and of fitted runs the
same bytes as without a kill.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
RESULTS = Path(__file__).with_name("results") / "kills.json"
OUTPUTS = ("out.onnx", "record.json", "report.html", "recipe.toml")
STATUS_OF_KILL = -signal.SIGKILL


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        flags: Of the command line, behind the model.
        external: Whether the model has external data.
        checkpoint: Whether the run keeps a state that a later run goes on with.
    """

    flags: tuple[str, ...]
    external: bool = False
    checkpoint: bool = False


CHANNELS = ("--structure", "channels")
TRAIN = ("--retrain", "--data", "data.npz", "--steps", "6", "--iterations", "2")
FIT = ("--structure", "joint", "--calibration", "data.npz", "--checkpoint", "out.checkpoint")
KINDS = {
    "embedded": Kind(CHANNELS),
    "external data": Kind(CHANNELS, external=True),
    "packed": Kind(("--pack",)),
    "sparse initializers": Kind(("--sparse-initializers",)),
    "int8": Kind(("--quantize", "int8", "--calibration", "data.npz", "--recover", "no")),
    "recovered": Kind((*CHANNELS, "--calibration", "data.npz"), external=True),
    "retrained": Kind(TRAIN, external=True, checkpoint=True),
    "fitted": Kind(FIT, external=True, checkpoint=True),
}


def make_inputs(folder: Path, kind: Kind) -> None:
    """A network of two layers with inputs and labels for it."""
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.standard_normal((16, 256)), "b1": rng.standard_normal(256),
        "w2": rng.standard_normal((256, 256)) / 16, "w3": rng.standard_normal((256, 8)) / 16,
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx", save_as_external_data=kind.external, location="weights.bin")
    np.savez(folder / "data.npz", x=rng.standard_normal((64, 16)).astype(np.float32), label=np.arange(64) % 8)


def command(kind: Kind, sparsity: float, *more: str) -> list[str]:
    out, record, report, recipe = OUTPUTS
    files = ["-o", out, "--record", record, "--report", report, "--save-recipe", recipe]
    return ["model.onnx", "--sparsity", str(sparsity), *kind.flags, *files, "--json", *more]


def start(arguments: list[str], folder: Path) -> int:
    """Run the command line in a fork; returns the process."""
    pid = os.fork()
    if pid:
        return pid
    from onnxprune.cli import main

    status = 99
    os.chdir(folder)
    with open(folder.parent / "said", "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    try:
        main(arguments)
    except SystemExit as left:
        status = int(left.code or 0)
    finally:
        os._exit(status)  # without the destructors of threads that a fork does not have
    return 0


def end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files_in(folder)}


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def problem(place: Path, before: dict[str, str], inputs: dict[str, str]) -> str:
    """What is wrong with a folder in which a run was killed; "" where nothing is."""
    now = hashes(place)
    if {name: now.get(name) for name in inputs} != inputs:
        return "an input was changed"
    for name in OUTPUTS:
        if name in before and name not in now:
            return f"{name} is gone"
    unfinished = any(name.endswith(".onnxprune-set") for name in now)
    if "out.onnx" in now and (wrong := broken(place)):
        return wrong
    return "" if unfinished else apart(place)


def broken(place: Path) -> str:
    from onnxprune import model_io

    try:
        for value in model_io.all_initializers(model_io.load(place / "out.onnx")):
            if value.const_value is not None:
                value.const_value.numpy()
        if (place / "record.json").exists():
            json.loads((place / "record.json").read_text())
        report = place / "report.html"
        if report.exists() and not report.read_text().rstrip().endswith("</html>"):
            return "the report is not whole"
    except Exception as error:
        return f"an output is damaged: {error}"
    return ""


def apart(place: Path) -> str:
    """Whether some outputs are there and others not, or the record is that of another model."""
    from onnxprune import model_io

    there = [name for name in OUTPUTS if (place / name).exists()]
    if there and len(there) < len(OUTPUTS):
        return f"only {', '.join(there)} are there"
    if there:
        record = json.loads((place / "record.json").read_text())
        if record["output"]["sha256"] != model_io.sha256(place / "out.onnx"):
            return "the record is that of another model"
    return ""


@dataclass
class Bench:
    """The places, one for each kind, with what an earlier run wrote and how long a run takes."""

    work: Path

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}
        for name, kind in KINDS.items():
            folder = self.work / name / "inputs"
            folder.mkdir(parents=True)
            make_inputs(folder, kind)
            old = self.work / name / "old"
            shutil.copytree(folder, old)
            self._must(command(kind, 0.25), old)
            begin = time.perf_counter()
            shutil.copytree(folder, self.work / name / "timed")
            self._must(command(kind, 0.75), self.work / name / "timed")
            self.seconds[name] = time.perf_counter() - begin

    def _must(self, arguments: list[str], folder: Path) -> None:
        if end(start(arguments, folder)):
            raise SystemExit(f"{arguments}: {(folder.parent / 'said').read_text()}")

    def kill(self, number: int) -> tuple[str, str, str]:
        """Kill one run; returns its kind, what it had come to, and what is wrong."""
        rng = np.random.default_rng((3, number))
        name = list(KINDS)[number % len(KINDS)]
        kind, replaces = KINDS[name], bool(rng.random() < 0.5)
        place = self.work / name / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.work / name / ("old" if replaces else "inputs"), place)
        inputs, before = hashes(self.work / name / "inputs"), hashes(place)
        low = 0.0 if rng.random() < 0.5 else 0.85
        pid = start(command(kind, 0.75, "--force"), place)
        time.sleep(float(rng.uniform(low, 1.1)) * self.seconds[name])
        os.kill(pid, signal.SIGKILL)
        status = end(pid)
        changed = {n for n, h in hashes(place).items() if before.get(n) != h}
        reached = "ended before" if status != STATUS_OF_KILL else self._reached(changed)
        wrong = problem(place, before, inputs)
        return name, reached, wrong or self._after(name, kind, place, inputs, bool(rng.random() < 0.5))

    def _reached(self, changed: set[str]) -> str:
        if any(name.endswith(".onnxprune-set") for name in changed):
            return "between the renames"
        if any(".onnxprune-tmp" in name and "checkpoint" not in name for name in changed):
            return "while writing outputs"
        if changed & set(OUTPUTS):
            return "after the outputs"
        return "with a checkpoint" if changed else "before the first file"

    def _after(self, name: str, kind: Kind, place: Path, inputs: dict[str, str], resumes: bool) -> str:
        """What is wrong after the next run in the folder."""
        again = ["--resume"] if resumes and (place / "out.checkpoint" / "run.json").exists() else []
        status = end(start(command(kind, 0.75, "--force", *again), place))
        if status:
            return f"the next run ends with {status}: {(place.parent / 'said').read_text()[-200:]}"
        data = {n for n in hashes(place) if n.startswith("out.onnx.") and n.endswith(".data")}
        left = set(hashes(place)) - set(inputs) - set(OUTPUTS) - data
        if "--checkpoint" in kind.flags:  # a folder that was named stays
            left = {name for name in left if not name.startswith(("out.checkpoint/part-", "out.checkpoint/run.json"))}
        if left or len(data) > 2 * kind.external:
            return f"left over: {sorted(left | data)}"
        whole = self.work / name / "timed" / "out.onnx"
        if kind.flags == FIT and (place / "out.onnx").read_bytes() != whole.read_bytes():
            return "the next run wrote another model"
        return problem(place, {}, inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=1e9)
    arguments = parser.parse_args()
    import jinja2  # noqa: F401  # imported before the forks
    import torch

    import onnxprune.cli
    import onnxprune.pipeline.run
    import onnxprune.pipeline.trainer
    import onnxprune.report.html
    import onnxprune.runtime.quantise  # noqa: F401

    torch.set_num_threads(1)
    onnxprune.cli.app.register()
    state: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    done, faults, mended = int(state.get("kills", 0)), dict(state.get("faults", {})), dict(state.get("mended", {}))
    kinds, reached = Counter(state.get("kinds", {})), Counter(state.get("reached", {}))
    stop = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as name, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        bench = Bench(Path(name))
        while done < arguments.count and time.monotonic() < stop:
            kind, came_to, wrong = bench.kill(done)
            kinds[kind] += 1
            reached[came_to] += 1
            if wrong:
                faults[str(done)] = f"{kind}, {came_to}: {wrong}"
                print(done, faults[str(done)], file=sys.__stderr__, flush=True)
            done += 1
            if done % 20 == 0 or done == arguments.count:
                state = {"kills": done, "kinds": kinds, "reached": reached, "faults": faults, "mended": mended}
                RESULTS.write_text(json.dumps(state, indent=1) + "\n")
    state = {"kills": done, "kinds": kinds, "reached": reached, "faults": faults, "mended": mended}
    RESULTS.write_text(json.dumps(state, indent=1) + "\n")
    print(json.dumps(state))


if __name__ == "__main__":
    main()
