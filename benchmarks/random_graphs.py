"""Prune thousands of random graphs and compare each result with the masked original in ONNX Runtime.

    python benchmarks/random_graphs.py --minutes 9          # go on from where the last call stopped
    python benchmarks/random_graphs.py --only 1234          # one graph again; --keep FOLDER keeps its files
    python benchmarks/random_graphs.py --faults             # graphs that had a fault again: is it mended?
    python benchmarks/random_graphs.py --hash-seeds 200     # so many graphs under two hash seeds: the same bytes?

The graphs are those of tests/grown.py and tests/grown_contractions.py: images and sequences, every opset that ONNX
Runtime runs from 9 on, float16, quantised weights, If, Loop and Scan, attention, a batch of any size. Graph n and how
it is pruned follow from n alone. Half of the runs go through the command line, half through `onnxprune.prune`.

The oracle is part of this script and reads the files alone. After `channels`, the written model must compute what the
original computes once everything that the record's `kept` leaves out is zero. After a structure that zeroes weights,
each weight of the written model must be zero or the original's. Where numbers are free to change (`--allow-inexact`,
recovery), the model must run, and its outputs must be finite with the shapes of the original's. The results name the
faults, and how many graphs were compared in which way.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
RESULTS = Path(__file__).with_name("results") / "random_graphs.json"
RUNNING = Path(tempfile.gettempdir()) / "onnxprune-random-graphs.running"
OLDEST_OPSET = 9
SHAPES = {"image": (4, 6, 6), "sequence": (5, 8)}
NOTHING_TO_DO = "there is nothing to prune"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Plan:
    """One graph of the campaign and how it is pruned.

    Attributes:
        kind: "image" or "sequence".
        flags: Of the command line.
        by_api: Whether `onnxprune.prune` is called instead of the command line.
    """

    number: int
    kind: str
    opset: int
    half: bool
    steps: tuple[tuple[int, int, int], ...]
    flags: tuple[str, ...]
    by_api: bool

    @property
    def structure(self) -> str:
        return self.flags[1]

    @property
    def changes_numbers(self) -> bool:
        """Whether weights that are left may get other numbers, or statistics run over fewer."""
        return "--allow-inexact" in self.flags or "--calibration" in self.flags


def plan_of(number: int, newest: int) -> Plan:
    rng = np.random.default_rng((7, number))
    kind = ("image", "sequence")[number % 2]
    opset = int(rng.integers(OLDEST_OPSET, newest + 1))
    half = bool(rng.random() < 0.12)
    count = int(rng.integers(2, 9))
    steps = tuple((int(a), int(b), int(c)) for a, b, c in rng.integers(0, 10_000, (count, 3)))
    structure = str(rng.choice(["channels"] * 7 + ["weights", "2:4", "blocks"]))
    flags = ["--structure", structure]
    if structure != "2:4":
        flags += ["--sparsity", str(rng.choice(["0.2", "0.5", "0.75"]))]
    if structure == "channels" and rng.random() < 0.15:
        flags += ["--allow-inexact"]
    if structure in ("channels", "weights") and rng.random() < 0.25:
        flags += ["--remove-dead"]
    if structure == "channels" and rng.random() < 0.4:
        flags += ["--round-to", "1"]
    if rng.random() < 0.12 and structure != "blocks":
        flags += ["--calibration", "data.npz"]
    return Plan(number, kind, opset, half, steps, tuple(flags), bool(rng.random() < 0.5))


def model_of(plan: Plan) -> onnx.ModelProto:
    import grown
    import grown_contractions

    kind = grown_contractions.IMAGE if plan.kind == "image" else grown_contractions.SEQUENCE
    model = grown.grow(kind, plan.steps, plan.number, opset=plan.opset)
    return to_half(model) if plan.half else model


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16; itself where quantised numbers or bodies of it are float32."""
    names = {node.op_type for node in model.graph.node}
    if any("Linear" in name or "Integer" in name or "Quantize" in name for name in names) or "MatMulNBits" in names:
        return model
    if names & {"Loop", "Scan", "DeformConv", "FusedConv", "FusedGemm", "LRN"}:
        return model
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    values = [*model.graph.input, *model.graph.output]
    bodies = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
    for value in (*values, *(v for body in bodies for v in (*body.input, *body.output))):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


# --- ONNX Runtime


def session_of(model: onnx.ModelProto | Path, *, fused: bool = False) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fused else levels.ORT_DISABLE_ALL
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def loads_fused(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime loads a model with its optimisations, as it does by default."""
    try:
        session_of(model, fused=True)
    except Exception:
        return False
    return True


def feeds_of(plan: Plan, model: onnx.ModelProto, batch: int) -> dict[str, Array]:
    rng = np.random.default_rng((plan.number, batch))
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name == "flag":
            feeds["flag"] = np.array(batch % 2 == 0)
        elif value.name == "x":
            real = np.float16 if value.type.tensor_type.elem_type == TensorProto.FLOAT16 else np.float32
            feeds["x"] = rng.standard_normal((batch, *SHAPES[plan.kind])).astype(real)
    return feeds


def distance(a: list[Array], b: list[Array]) -> float:
    """The largest difference, relative to the largest number of each output; infinite where one is not finite."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return float("inf")
        x, y = x.astype(np.float64), y.astype(np.float64)
        if not np.array_equal(np.isfinite(x), np.isfinite(y)):
            return float("inf")
        x, y = np.nan_to_num(x, posinf=0, neginf=0), np.nan_to_num(y, posinf=0, neginf=0)
        worst = max(worst, float(np.abs(x - y).max(initial=0)) / max(float(np.abs(x).max(initial=0)), 1e-3))
    return worst


# --- the oracle


def masked(model: onnx.ModelProto, kept: Mapping[str, Mapping[str, list[int]]]) -> onnx.ModelProto:
    """The model with zeros, or zero points, in all that `kept` leaves out."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in twin.graph.initializer}
    zeros = zero_points(twin, tensors)
    divisors = {node.input[1] for node in model.graph.node if node.op_type == "Div"}
    for name, axes in kept.items():
        if name not in tensors:
            raise KeyError(name)
        array = numpy_helper.to_array(tensors[name]).copy()
        if array.dtype.kind != "f" and name not in zeros:
            continue  # indices, extents, zero points: not what computes
        if name in divisors:
            continue  # what is divided by them is zero
        zero = np.broadcast_to(np.asarray(zeros.get(name, 0)), array.shape)
        for axis, indices in axes.items():
            gone = np.setdiff1d(np.arange(array.shape[int(axis)]), indices)
            np.moveaxis(array, int(axis), 0)[gone] = np.moveaxis(zero, int(axis), 0)[gone]
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    return twin


def zero_points(model: onnx.ModelProto, tensors: Mapping[str, onnx.TensorProto]) -> dict[str, Array]:
    """For each quantised constant, what stands for zero in it, laid along the axis that it belongs to."""
    places = {
        "QLinearConv": ((3, 5), (8, None)), "QLinearMatMul": ((3, 5),), "ConvInteger": ((1, 3),),
        "MatMulInteger": ((1, 3),), "DequantizeLinear": ((0, 2),), "MatMulIntegerToFloat": ((1, 5),),
        "DynamicQuantizeMatMul": ((1, 3),), "QGemm": ((3, 5), (6, None)), "QAttention": ((1, 7),),
        "DynamicQuantizeLSTM": ((1, 9), (2, 11)),
    }  # fmt: skip
    values: dict[str, Array] = {}
    for node in model.graph.node:
        for weight, zero in places.get(node.op_type, ()):
            name = node.input[weight] if weight < len(node.input) else ""
            if name not in tensors or numpy_helper.to_array(tensors[name]).dtype.kind == "f":
                continue
            point = node.input[zero] if zero is not None and zero < len(node.input) else ""
            value = numpy_helper.to_array(tensors[point]) if point in tensors else np.array(0)
            if value.ndim == 1 and node.op_type == "QLinearConv":
                value = value.reshape(-1, 1, 1, 1)
            values[name] = value if node.op_type != "DynamicQuantizeLSTM" else np.array(0)
    return values


def judge(plan: Plan, model: onnx.ModelProto, out: Path, record: Mapping[str, Any]) -> str:
    """How the result was compared; raises AssertionError where it is wrong."""
    written = onnx.load(out)
    batches = [feeds_of(plan, model, batch) for batch in (2, 3)]
    before, after = session_of(model), session_of(out)
    plain = [before.run(None, feeds) for feeds in batches]
    results = [after.run(None, feeds) for feeds in batches]
    for a, b in zip(plain, results, strict=True):
        assert [x.shape for x in a] == [x.shape for x in b], "the outputs have other shapes"
        finite = all(np.isfinite(x).all() for x in a)
        assert not finite or all(np.isfinite(x).all() for x in b), "the outputs are no longer finite"
    if plan.structure in ("weights", "2:4"):
        return "runs" if plan.changes_numbers or "--remove-dead" in plan.flags else zero_or_equal(model, written)
    if plan.changes_numbers or plan.structure == "blocks":
        return "runs"
    if record["renamed"]:
        return "runs, constants that nodes share"
    twin = masked(model, record["kept"])
    session, fused = session_of(twin), session_of(twin, fused=True)
    expected = [session.run(None, feeds) for feeds in batches]
    rounding = max(distance(e, fused.run(None, f)) for e, f in zip(expected, batches, strict=True))
    half = any(v.type.tensor_type.elem_type == TensorProto.FLOAT16 for v in model.graph.input)
    limit = max(3e-2 if half else 1e-4, 4 * rounding)
    off = max(distance(e, r) for e, r in zip(expected, results, strict=True))
    if off > limit and any("Quantize" in node.op_type or "QLinear" in node.op_type for node in model.graph.node):
        limit = 0.08  # a number at the border between two steps falls to either
    assert off <= limit, f"removed differs from masked by {off:.3g}, and {limit:.1g} is allowed"
    moved = max(distance(p, e) for p, e in zip(plain, expected, strict=True))
    return "removed equals masked" if moved > 1e-6 or not record["kept"] else "removed equals masked, no output moves"


def zero_or_equal(model: onnx.ModelProto, written: onnx.ModelProto) -> str:
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    for tensor in model.graph.initializer:
        array, other = numpy_helper.to_array(tensor), tensors.get(tensor.name)
        if other is not None and other.shape == array.shape and array.dtype.kind == "f":
            assert np.all((other == 0) | (other == array)), f"'{tensor.name}' holds other numbers"
    return "zero or equal"


# --- one graph


class Refused(Exception):
    """The run ended with another status than 0."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def prune(plan: Plan, folder: Path) -> dict[str, Any]:
    """Prune `model.onnx` of the folder to `out.onnx`; returns the record."""
    os.chdir(folder)
    if plan.by_api:
        by_api(plan)
    else:
        by_command(plan)
    content: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return content


def by_command(plan: Plan) -> None:
    from onnxprune.cli import main

    out, err = io.StringIO(), io.StringIO()
    arguments = ["model.onnx", "-o", "out.onnx", "--record", "record.json", "--json", "--accept-unproved", *plan.flags]
    status: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(arguments)
    except SystemExit as left:
        status = left.code or 0
    if status:
        raise Refused(int(status), err.getvalue().strip())
    json.loads(out.getvalue())


def by_api(plan: Plan) -> None:
    import onnxprune
    from onnxprune.errors import OnnxPruneError

    settings: dict[str, Any] = {"accept_unproved": True}
    flags = iter(plan.flags)
    for flag in flags:
        name = flag.removeprefix("--").replace("-", "_")
        if name in ("allow_inexact", "remove_dead"):
            settings[name] = True
        else:
            value = next(flags)
            settings[name] = value if name in ("structure", "calibration") else float(value)
    if "round_to" in settings:
        settings["round_to"] = int(settings["round_to"])
    try:
        result = onnxprune.prune("model.onnx", **settings)
        onnxprune.save(result, "out.onnx", record="record.json")
    except OnnxPruneError as error:
        raise Refused(error.exit_status, str(error)) from error


def one(plan: Plan, folder: Path) -> tuple[str, dict[str, Any], onnx.ModelProto]:
    """What became of one graph; a word that begins with "fault" where something is wrong."""
    model = model_of(plan)
    try:
        session = session_of(model)
        for batch in (2, 3):
            session.run(None, feeds_of(plan, model, batch))
    except Exception:
        return "not run by ONNX Runtime", {}, model
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "data.npz", **{k: v for k, v in feeds_of(plan, model, 8).items() if k != "flag"})
    if "--calibration" in plan.flags and any(value.name == "flag" for value in model.graph.input):
        np.savez(folder / "data.npz", **feeds_of(plan, model, 8))
    try:
        record = prune(plan, folder)
        return judge(plan, model, folder / "out.onnx", record), record, model
    except Refused as refused:
        sentence = str(refused)
        if NOTHING_TO_DO in sentence:
            return "nothing to prune", {}, model
        if not loads_fused(model):  # its optimiser makes a graph that it refuses, also of the original
            return "not run by ONNX Runtime", {}, model
        if "an error inside" in sentence or refused.status == 1:
            return f"fault: status {refused.status}: {sentence}", {}, model
        return f"refused: {sentence}", {}, model
    except AssertionError as error:
        return f"fault: {error}", {}, model
    except Exception as error:
        return f"fault: {type(error).__name__}: {error} {traceback.format_exc().splitlines()[-3].strip()}", {}, model


def operators_of(model: onnx.ModelProto) -> Iterator[str]:
    from onnxprune.graph.operators import key

    nodes = list(model.graph.node)
    while nodes:
        node = nodes.pop()
        yield key(node.domain, node.op_type)
        nodes += [inner for attribute in node.attribute for inner in attribute.g.node]


def contractions() -> set[str]:
    """Operators of the table that multiply weights or activations and have a rule."""
    from onnxprune.graph.multiply_adds import no_products
    from onnxprune.graph.operators import operators
    from onnxprune.structure.registry import find_rule

    return {n for n, o in operators().items() if o.multiply_adds is not no_products and find_rule(n) is not None}


# --- the campaign


def newest_opset() -> int:
    """The newest opset for which ONNX Runtime runs a graph with a quantised product, the last to follow."""
    from onnxprune.model_io.limits import runtime_refusal

    newest = max(o for o in range(OLDEST_OPSET, onnx.defs.onnx_opset_version() + 1) if not runtime_refusal(8, o))
    while True:
        plan = Plan(0, "sequence", newest, False, ((25, 0, 0), (26, 0, 0)), ("--structure", "channels"), False)
        with contextlib.suppress(Exception):
            session_of(model_of(plan))
            return newest
        newest -= 1


def campaign(minutes: float, until: int) -> None:
    state: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    done, outcomes = int(state.get("graphs", 0)), Counter(state.get("outcomes", {}))
    operators, opsets = Counter(state.get("operators", {})), Counter(state.get("opsets", {}))
    ways, kinds = Counter(state.get("ways", {})), Counter(state.get("kinds", {}))
    faults, newest = dict(state.get("faults", {})), newest_opset()
    aborted = dict(state.get("aborted", {}))
    if RUNNING.exists():  # the last call died in the middle of this graph
        number = RUNNING.read_text()
        aborted[number] = why_it_aborted(plan_of(int(number), newest))
        print(number, aborted[number], flush=True)
    end, home = time.monotonic() + 60 * minutes, Path.cwd()
    while done < until and time.monotonic() < end:
        if str(done) in aborted:
            outcomes[aborted[str(done)]] += 1
            done += 1
            continue
        plan = plan_of(done, newest)
        RUNNING.write_text(str(done))
        with tempfile.TemporaryDirectory() as name:
            outcome, _, model = one(plan, Path(name))
            os.chdir(home)
        done += 1
        outcomes[outcome.split(":")[0]] += 1
        if outcome.startswith(("fault", "refused")):
            faults[str(plan.number)] = outcome[:300]
            print(plan.number, outcome[:300], flush=True)
        if outcome != "not run by ONNX Runtime":
            operators.update(set(operators_of(model)))
            opsets[str(plan.opset)] += 1
            ways["API" if plan.by_api else "command line"] += 1
            kinds.update({flag for flag in plan.flags if flag.startswith("--")} | {plan.structure})
            kinds["float16"] += any(v.type.tensor_type.elem_type == TensorProto.FLOAT16 for v in model.graph.input)
        if done % 50 == 0 or done == until or time.monotonic() >= end:
            wanted = contractions()
            state |= {
                "graphs": done, "outcomes": dict(sorted(outcomes.items())), "ways": dict(sorted(ways.items())),
                "kinds": dict(sorted(kinds.items())), "opsets": dict(sorted(opsets.items(), key=lambda i: int(i[0]))),
                "contractions met": sorted(wanted & set(operators)),
                "contractions not met": sorted(wanted - set(operators)),
                "operators": dict(sorted(operators.items())), "faults": faults,
            }  # fmt: skip
            state["aborted"] = aborted
            RESULTS.write_text(json.dumps(state, indent=1) + "\n")
    RUNNING.unlink(missing_ok=True)
    print(f"{done} graphs: {dict(outcomes)}")


def faults_again() -> None:
    """Prune those graphs again that had a fault; what holds now moves from "faults" to "mended"."""
    state: dict[str, Any] = json.loads(RESULTS.read_text())
    newest, home, outcomes = newest_opset(), Path.cwd(), Counter(state["outcomes"])
    for number in list(state["faults"]):
        with tempfile.TemporaryDirectory() as name:
            outcome, _, _ = one(plan_of(int(number), newest), Path(name))
            os.chdir(home)
        print(number, outcome[:200], flush=True)
        if not outcome.startswith(("fault", "refused")):
            said = state["faults"].pop(number)
            state.setdefault("mended", {})[number] = said[:160]
            outcomes[said.split(":")[0]] -= 1
            outcomes[outcome] += 1
    state["outcomes"] = {name: count for name, count in sorted(outcomes.items()) if count}
    RESULTS.write_text(json.dumps(state, indent=1) + "\n")


def why_it_aborted(plan: Plan) -> str:
    """Whether ONNX Runtime aborts on the original alone, which is no fault of the pruning."""
    code = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    with tempfile.TemporaryDirectory() as name:
        onnx.save(model_of(plan), Path(name) / "model.onnx")
        ran = subprocess.run([sys.executable, "-c", code, str(Path(name) / "model.onnx")], capture_output=True)
    return "ONNX Runtime aborts on the original" if ran.returncode < 0 else "fault: the process died"


def hashes(first: int, count: int) -> list[str]:
    newest, lines, home = newest_opset(), [], Path.cwd()
    for number in range(first, first + count):
        with tempfile.TemporaryDirectory() as name:
            plan = plan_of(number, newest)
            one(plan, Path(name))
            os.chdir(home)
            out = Path(name) / "out.onnx"
            lines.append(hashlib.sha256(out.read_bytes()).hexdigest() if out.exists() else "none")
    return lines


def hash_seeds(first: int, count: int) -> None:
    """Prune the same graphs in processes of two hash seeds, and compare the bytes."""
    outcomes = []
    for seed in ("1", "2"):
        command = [sys.executable, __file__, "--hashes", str(first), str(count)]
        ran = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        outcomes.append(json.loads(ran.stdout.splitlines()[-1]))
    other = [first + i for i, (a, b) in enumerate(zip(*outcomes, strict=True)) if a != b]
    written = sum(a != "none" for a in outcomes[0])
    state: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    state["hash seeds"] = {"graphs": count, "written": written, "other bytes": other}
    RESULTS.write_text(json.dumps(state, indent=1) + "\n")
    print(f"{count} graphs, {written} written, other bytes: {other or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--until", type=int, default=10_000, help="how many graphs in all")
    parser.add_argument("--only", type=int, nargs="*", help="these graphs again")
    parser.add_argument("--keep", type=Path, help="with --only: where the files stay")
    parser.add_argument("--faults", action="store_true", help="those graphs again that had a fault")
    parser.add_argument("--hash-seeds", type=int, metavar="N")
    parser.add_argument("--hashes", type=int, nargs=2, metavar=("FIRST", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hashes:
        print(json.dumps(hashes(*arguments.hashes)))
    elif arguments.hash_seeds:
        hash_seeds(0, arguments.hash_seeds)
    elif arguments.faults:
        faults_again()
    elif arguments.only:
        for number in arguments.only:
            plan = plan_of(number, newest_opset())
            with tempfile.TemporaryDirectory() as name:
                folder = (arguments.keep or Path(name)).resolve()
                folder.mkdir(parents=True, exist_ok=True)
                for old in ("out.onnx", "record.json"):
                    (folder / old).unlink(missing_ok=True)
                home = Path.cwd()
                outcome, _, model = one(plan, folder)
                os.chdir(home)
            print(number, plan.flags, f"opset {plan.opset}", [n.op_type for n in model.graph.node], outcome, sep="\n  ")
    else:
        campaign(arguments.minutes, arguments.until)


if __name__ == "__main__":
    main()
