"""Which faults in the structure and the passes the tests see (mutation testing).

    python benchmarks/mutation.py --sample 500 --output faults.json          # draws 500 faults and tries them
    python benchmarks/mutation.py --sample 500 --output faults.json --again  # tries those that survived once more
    python benchmarks/mutation.py --output faults.json --survivors           # prints what survived, runs nothing
    python benchmarks/mutation.py --output faults.json --summary benchmarks/results/mutation.json

The summary holds the counts by file and every survivor; a ``reason`` that was written there by hand is kept.

The tests are collected once. For each fault the process forks; the child puts the faulty function in the place of the
right one and runs the tests that run its line, quickest first, up to the first that fails. Which tests run which line
is measured first. A run that is stopped goes on where it was. Needs mutmut (for its operators) and coverage.
"""

from __future__ import annotations

import argparse
import collections
import gc
import importlib
import itertools
import json
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import coverage
import pytest
from mutants import Mutant, mutants_of, sample

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("onnxprune/structure", "passes")
TESTS = (
    "tests/structure", "tests/passes", "tests/selection", "tests/pipeline/test_layers.py",
    "tests/pipeline/test_resize_io.py", "tests/pipeline/test_tiling.py",
)  # fmt: skip
WARM = ("structure.node_cases:cases",)  # slow, and the same for every fault
PATIENCE = 10  # CPU seconds that a test may take beyond five times what it takes without a fault
MEMORY = 12 << 30  # bytes of address space that a faulty run may ask for beyond what there is


@dataclass(frozen=True)
class Reach:
    """What the tests do without any fault: which run which lines, and how long each takes."""

    tests: Mapping[str, Mapping[int, Sequence[int]]]
    seconds: Sequence[float]

    def of(self, mutant: Mutant, most: float) -> list[int]:
        """Return the tests that run the statement of a fault, quickest first, as many as fit into the time for one."""
        lines = self.tests.get(os.path.realpath(mutant.path), {})
        tests = sorted({t for line in mutant.lines for t in lines.get(line, ())}, key=lambda t: self.seconds[t])
        spent = itertools.accumulate(self.seconds[t] for t in tests)
        return [t for t, seconds in zip(tests, spent, strict=True) if seconds <= most or t == tests[0]]


@dataclass
class Trial:
    """A child that runs the tests of one fault, and what is known of it so far."""

    mutant: Mutant
    pid: int
    read: int
    last: int | None = None
    end: float = PATIENCE
    stuck: float = 0.0


class Judge:
    """A pytest plugin whose test loop runs the tests once for each fault."""

    def __init__(
        self, mutants: Sequence[Mutant], results: dict[str, Any], output: Path, workers: int, most: float
    ) -> None:
        self.mutants = mutants
        self.results = results
        self.output = output
        self.workers = workers
        self.most = most
        self.child = False
        self.killers: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        _warm()
        functions = _functions()
        reach = self._measure(session)
        print(f"{len(session.items)} tests take {sum(reach.seconds):.0f} s", flush=True)
        start, done, waiting, running = time.monotonic(), 0, list(self.mutants)[::-1], list[Trial]()
        while waiting or running:
            while waiting and len(running) < self.workers:
                mutant = waiting.pop()
                if trial := self._begin(session, mutant, reach, functions):
                    running.append(trial)
                else:
                    self.results[mutant.key] = _entry(mutant, "not reached", None)
            for trial in list(running):
                verdict = _verdict(trial, reach.seconds)
                if verdict is None:
                    continue
                running.remove(trial)
                killer = trial.last if verdict != "survived" else None
                if killer is not None:
                    self.killers[_place(trial.mutant)][killer] += 1
                name = session.items[killer].nodeid if killer is not None else None
                self.results[trial.mutant.key] = _entry(trial.mutant, verdict, name)
                done += 1
                if done % 20 == 0:
                    _write(self.output, self.results)
                    print(f"{done} after {time.monotonic() - start:.0f} s: {tally(self.results)}", flush=True)
            time.sleep(0.005)
        _write(self.output, self.results)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.child and report.failed:
            os._exit(1)

    def _measure(self, session: pytest.Session) -> Reach:
        """Run all tests in children that watch the lines."""
        with tempfile.TemporaryDirectory() as folder:
            children = []
            for worker in range(self.workers):
                pid = os.fork()
                if pid == 0:
                    self._watch(session, range(worker, len(session.items), self.workers), Path(folder) / str(worker))
                children.append(pid)
            if any(os.waitpid(pid, 0)[1] for pid in children):
                raise SystemExit(f"a test fails without any fault; run: pytest -x {' '.join(TESTS)}")
            tests: dict[str, dict[int, list[int]]] = collections.defaultdict(lambda: collections.defaultdict(list))
            seconds = [0.0] * len(session.items)
            for worker in range(self.workers):
                part: Reach = pickle.loads((Path(folder) / str(worker)).read_bytes())
                seconds[worker :: self.workers] = part.seconds
                for file, lines in part.tests.items():
                    for line, numbers in lines.items():
                        tests[file][line] += numbers
            return Reach(tests, seconds)

    def _watch(self, session: pytest.Session, numbers: range, result: Path) -> None:
        """Run some of the tests, write which lines each ran, and end the process."""
        _quiet()
        self.child = True
        watch = coverage.Coverage(include=[f"{ROOT / s}/*" for s in SOURCES], data_file=None)
        watch.start()
        seconds = []
        for number in numbers:
            watch.switch_context(str(number))
            start = time.process_time()
            _run(session.items[number])
            seconds.append(time.process_time() - start)
        watch.stop()
        data = watch.get_data()
        tests = {
            os.path.realpath(f): {
                n: [int(c) for c in contexts if c] for n, contexts in data.contexts_by_lineno(f).items()
            }
            for f in data.measured_files()
        }
        result.write_bytes(pickle.dumps(Reach(tests, seconds)))
        os._exit(0)

    def _begin(
        self,
        session: pytest.Session,
        mutant: Mutant,
        reach: Reach,
        functions: Mapping[tuple[str, str], list[FunctionType]],
    ) -> Trial | None:
        """Fork a child for a fault, None where no test runs it; what saw others of its function goes first."""
        tests = reach.of(mutant, self.most)
        if not tests:
            return None
        tests = [t for t, _ in self.killers[_place(mutant)].most_common(3) if t in tests] + tests
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _quiet()
            self.child = True
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            code = mutant.code()
            for function in functions[os.path.realpath(mutant.path), mutant.qualname]:
                function.__code__ = code
            for number in tests:
                os.write(write, number.to_bytes(4, "little"))
                _run(session.items[number])
            os._exit(0)
        os.close(write)
        os.set_blocking(read, False)
        return Trial(mutant, pid, read, stuck=time.monotonic() + 30 * PATIENCE)


def _place(mutant: Mutant) -> str:
    return f"{mutant.path} {mutant.qualname}"


def _verdict(trial: Trial, seconds: Sequence[float]) -> str | None:
    """Return "killed", "survived" or "timeout" when a trial has ended; it is ended where a test takes far too long."""
    ended, status = os.waitpid(trial.pid, os.WNOHANG)
    try:
        begun = os.read(trial.read, 4096)
    except BlockingIOError:
        begun = b""
    if begun:
        trial.last = int.from_bytes(begun[-4:], "little")
        trial.end = _spent(trial.pid) + PATIENCE + 5 * seconds[trial.last]
        trial.stuck = time.monotonic() + 30 * PATIENCE
    if ended:
        os.close(trial.read)
        return "killed" if status else "survived"
    if _spent(trial.pid) > trial.end or time.monotonic() > trial.stuck:
        os.kill(trial.pid, signal.SIGKILL)
        os.waitpid(trial.pid, 0)
        os.close(trial.read)
        return "timeout"
    return None


def _run(item: pytest.Item) -> None:
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)


def _spent(pid: int) -> float:
    """Return the CPU seconds of a process: a busy machine must not look like an endless loop."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _quiet() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _warm() -> None:
    for name in WARM:
        module, function = name.split(":")
        if module in sys.modules:
            getattr(importlib.import_module(module), function)()


def _functions() -> dict[tuple[str, str], list[FunctionType]]:
    """Return every function of the package that is alive, by file and qualified name."""
    functions: dict[tuple[str, str], list[FunctionType]] = collections.defaultdict(list)
    folders = tuple(str((ROOT / s).resolve()) for s in SOURCES)
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType):
            path = os.path.realpath(thing.__code__.co_filename)
            if path.startswith(folders):
                functions[path, thing.__code__.co_qualname].append(thing)
    return functions


def _entry(mutant: Mutant, verdict: str, test: str | None) -> dict[str, Any]:
    return {
        "file": str(mutant.path.relative_to(ROOT)),
        "line": mutant.line,
        "function": mutant.qualname,
        "before": mutant.before,
        "after": mutant.after,
        "verdict": verdict,
        **({"test": test} if test else {}),
    }


def _write(path: Path, results: Mapping[str, Any]) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(results, indent=0) + "\n", encoding="utf-8")
    beside.replace(path)


def tally(results: Mapping[str, Any]) -> str:
    """Say how many faults were killed."""
    counts = collections.Counter(r["verdict"] for r in results.values())
    killed = counts["killed"] + counts["timeout"]
    return f"{killed} of {len(results)} killed ({killed / max(len(results), 1):.1%}); {dict(counts)}"


def survivors(results: Mapping[str, Any]) -> list[str]:
    """Return a line for each fault that no test saw."""
    left = [r for r in results.values() if r["verdict"] in ("survived", "not reached")]
    left.sort(key=lambda r: (r["file"], r["line"]))
    return [f"{r['file']}:{r['line']} {r['function']} [{r['verdict']}] {r['before']}  ->  {r['after']}" for r in left]


def write_summary(path: Path, results: Mapping[str, Any]) -> None:
    """Write counts by file, and the survivors with the reasons that the file has for them."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"survivors": []}
    reasons = {s["key"]: s["reason"] for s in old["survivors"] if "reason" in s}
    files: dict[str, dict[str, int]] = {}
    for result in results.values():
        counts = files.setdefault(result["file"], {"faults": 0, "killed": 0})
        counts["faults"] += 1
        counts["killed"] += result["verdict"] in ("killed", "timeout")
    left = [
        {"key": key, **result, **({"reason": reasons[key]} if key in reasons else {})}
        for key, result in sorted(results.items(), key=lambda item: (item[1]["file"], item[1]["line"]))
        if result["verdict"] in ("survived", "not reached")
    ]
    summary = {
        "faults": len(results),
        "killed": len(results) - len(left),
        "files": dict(sorted(files.items())),
        "survivors": left,
    }
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sample", type=int, default=10**9, help="how many faults to draw (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--workers", type=int, default=1, help="how many faults are tried at once")
    parser.add_argument("--most", type=float, default=60, help="CPU seconds of tests for one fault (default: 60)")
    parser.add_argument("--only", default="", help="files whose path holds this text")
    parser.add_argument("--again", action="store_true", help="run those that survived once more")
    parser.add_argument("--survivors", action="store_true", help="print what survived, run nothing")
    parser.add_argument("--summary", type=Path, help="write the counts and what survived, run nothing")
    options = parser.parse_args()
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    if options.summary is not None:
        write_summary(options.summary, results)
    elif not options.survivors:
        os.chdir(ROOT)
        files = sorted(f for s in SOURCES for f in (ROOT / s).rglob("*.py") if options.only in str(f))
        everything = [m for f in files for m in mutants_of(f)]
        drawn = sample(everything, options.sample, options.seed)
        results = {m.key: results[m.key] for m in drawn if m.key in results}
        left = {k for k, r in results.items() if r["verdict"] in ("survived", "not reached")}
        todo = [m for m in drawn if m.key not in results or (options.again and m.key in left)]
        print(f"{len(everything)} faults in {len(files)} files, {len(drawn)} drawn, {len(todo)} to run", flush=True)
        sys.path[:0] = [str(ROOT)]
        tests = [str(ROOT / t) for t in TESTS]
        pytest.main(
            ["-q", "-p", "no:cacheprovider", "--no-header", *tests],
            plugins=[Judge(todo, results, options.output, options.workers, options.most)],
        )
        _write(options.output, results)
    print("\n".join(survivors(results)))
    print(tally(results))


if __name__ == "__main__":
    main()
