"""Which faults in the structure and the passes the tests see (mutation testing).

    python benchmarks/mutation.py --sample 800 --output benchmarks/results/mutation.json
    python benchmarks/mutation.py --again --output benchmarks/results/mutation.json      # only those that survived
    python benchmarks/mutation.py --survivors --output benchmarks/results/mutation.json  # print them, run nothing

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
TESTS = ("tests/structure", "tests/passes", "tests/selection")
WARM = ("structure.node_cases:cases",)  # slow, and the same for every fault
PATIENCE = 10  # CPU seconds that a test may take beyond five times what it takes without a fault
MOST = 20.0  # CPU seconds of tests for one fault; what would be seen later counts as not seen
MEMORY = 12 << 30  # bytes of address space that a faulty run may ask for beyond what there is


@dataclass(frozen=True)
class Reach:
    """What the tests do without any fault: which run which lines, and how long each takes."""

    tests: Mapping[str, Mapping[int, Sequence[int]]]
    seconds: Sequence[float]

    def of(self, mutant: Mutant) -> list[int]:
        """Return the tests that run the statement of a fault, quickest first, as many as fit into the time for one."""
        lines = self.tests.get(os.path.realpath(mutant.path), {})
        tests = sorted({t for line in mutant.lines for t in lines.get(line, ())}, key=lambda t: self.seconds[t])
        spent = itertools.accumulate(self.seconds[t] for t in tests)
        return [t for t, seconds in zip(tests, spent, strict=True) if seconds <= MOST or t == tests[0]]


class Judge:
    """A pytest plugin whose test loop runs the tests once for each fault."""

    def __init__(self, mutants: Sequence[Mutant], results: dict[str, Any], output: Path) -> None:
        self.mutants = mutants
        self.results = results
        self.output = output
        self.child = False

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        _warm()
        functions = _functions()
        reach = self._measure(session)
        print(f"{len(session.items)} tests take {sum(reach.seconds):.0f} s", flush=True)
        killers: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
        start = time.monotonic()
        for number, mutant in enumerate(self.mutants, 1):
            tests = reach.of(mutant)
            known = killers[f"{mutant.path} {mutant.qualname}"]
            first = [t for t, _ in known.most_common(3) if t in tests]
            verdict, killer = self._judge(session, mutant, [*first, *tests], functions, reach)
            if killer is not None:
                known[killer] += 1
            name = session.items[killer].nodeid if killer is not None else None
            self.results[mutant.key] = _entry(mutant, verdict, name)
            if number % 25 == 0 or number == len(self.mutants):
                _write(self.output, self.results)
                print(
                    f"{number}/{len(self.mutants)} after {time.monotonic() - start:.0f} s: {tally(self.results)}",
                    flush=True,
                )
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.child and report.failed:
            os._exit(1)

    def _measure(self, session: pytest.Session) -> Reach:
        """Run all tests in a child that watches the lines."""
        with tempfile.NamedTemporaryFile() as file:
            pid = os.fork()
            if pid == 0:
                _quiet()
                self.child = True
                watch = coverage.Coverage(include=[f"{ROOT / s}/*" for s in SOURCES], data_file=None)
                watch.start()
                seconds = []
                for number, item in enumerate(session.items):
                    watch.switch_context(str(number))
                    start = time.process_time()
                    _run(item)
                    seconds.append(time.process_time() - start)
                watch.stop()
                data = watch.get_data()
                tests = {
                    os.path.realpath(f): {
                        line: [int(c) for c in contexts if c] for line, contexts in data.contexts_by_lineno(f).items()
                    }
                    for f in data.measured_files()
                }
                Path(file.name).write_bytes(pickle.dumps(Reach(tests, seconds)))
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            if status != 0:
                raise SystemExit(f"a test fails without any fault; run: pytest -x {' '.join(TESTS)}")
            found: Reach = pickle.loads(Path(file.name).read_bytes())
            return found

    def _judge(
        self,
        session: pytest.Session,
        mutant: Mutant,
        tests: Sequence[int],
        functions: Mapping[tuple[str, str], list[FunctionType]],
        reach: Reach,
    ) -> tuple[str, int | None]:
        """Return "killed", "timeout", "survived" or "not reached", and the test that failed."""
        if not tests:
            return "not reached", None
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _quiet()
            self.child = True
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            live = functions[os.path.realpath(mutant.path), mutant.qualname]
            for function in live:
                function.__code__ = mutant.code()
            for number in tests:
                os.write(write, number.to_bytes(4, "little"))
                _run(session.items[number])
            os._exit(0)
        os.close(write)
        status, last = _watch(pid, read, reach.seconds)
        os.close(read)
        return ("timeout", last) if status is None else ("survived", None) if status == 0 else ("killed", last)


def _run(item: pytest.Item) -> None:
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)


def _watch(pid: int, read: int, seconds: Sequence[float]) -> tuple[int | None, int | None]:
    """Wait for a child that writes the number of each test as it begins; end it where one takes far too long.

    Returns:
        Its exit status, None where it was ended, and its last test.
    """
    os.set_blocking(read, False)
    last, end, stuck = None, PATIENCE, time.monotonic() + 30 * PATIENCE
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        try:
            begun = os.read(read, 4096)
        except BlockingIOError:
            begun = b""
        if begun:
            last = int.from_bytes(begun[-4:], "little")
            end, stuck = _spent(pid) + PATIENCE + 5 * seconds[last], time.monotonic() + 30 * PATIENCE
        if done:
            return status, last
        if _spent(pid) > end or time.monotonic() > stuck:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, last
        time.sleep(0.005)


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
    found: dict[tuple[str, str], list[FunctionType]] = collections.defaultdict(list)
    folders = tuple(str((ROOT / s).resolve()) for s in SOURCES)
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType):
            path = os.path.realpath(thing.__code__.co_filename)
            if path.startswith(folders):
                found[path, thing.__code__.co_qualname].append(thing)
    return found


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sample", type=int, default=10**9, help="how many faults to draw (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="files whose path holds this text")
    parser.add_argument("--again", action="store_true", help="run those that survived once more, and nothing else")
    parser.add_argument("--survivors", action="store_true", help="print what survived, run nothing")
    options = parser.parse_args()
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    if not options.survivors:
        os.chdir(ROOT)
        files = sorted(f for s in SOURCES for f in (ROOT / s).rglob("*.py") if options.only in str(f))
        everything = [m for f in files for m in mutants_of(f)]
        drawn = sample(everything, options.sample, options.seed)
        results = {k: r for k, r in results.items() if k in {m.key for m in everything}}
        left = {k for k, r in results.items() if r["verdict"] in ("survived", "not reached")}
        todo = [m for m in drawn if (m.key in left if options.again else m.key not in results)]
        print(f"{len(everything)} faults in {len(files)} files, {len(drawn)} drawn, {len(todo)} to run", flush=True)
        tests = [str(ROOT / t) for t in TESTS]
        pytest.main(
            ["-q", "-p", "no:cacheprovider", "--no-header", *tests], plugins=[Judge(todo, results, options.output)]
        )
        _write(options.output, results)
    print("\n".join(survivors(results)))
    print(tally(results))


if __name__ == "__main__":
    main()
