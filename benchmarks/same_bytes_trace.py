"""Which commit made a pair of same_bytes.py different: found by bisection, written beside the recorded results.

    python benchmarks/same_bytes_trace.py --state FOLDER

Every pair that differs at HEAD from what the last trace found is run at commits between, each in a copy of its package,
until the commits are known at which its bytes changed. `--state` keeps the hashes of each commit, so that an
interrupted run goes on. The result, benchmarks/results/same_bytes_causes.json, holds for each pair these commits and
the hashes at HEAD; the next trace begins there. The reasons for the commits are REASONS of same_bytes_pairs.py. Some
ten minutes on two cores for 27 pairs and 80 commits.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from same_bytes import CAUSES, RESULTS, ROOT, Hashes, chosen, measure, read, write

RECORDED_AT = "9138556"  # the commit of same_bytes.json
_Bytes = tuple[str | None, str | None, str | None]


def bytes_of(hashes: Hashes) -> _Bytes:
    """What is compared of a pair: the model, the record, and whether it failed."""
    return hashes.get("model"), hashes.get("record"), hashes.get("error")


@dataclass
class History:
    """The commits from the recorded one to HEAD, and what was measured of each.

    Attributes:
        commits: Their names, oldest first.
        state: The folder of the results of each.
        known: By pair, by number of the commit, its hashes.
    """

    commits: list[str]
    state: Path
    known: dict[str, dict[int, _Bytes]] = field(default_factory=dict)

    def run(self, number: int, names: list[str]) -> None:
        """Measure pairs at a commit, but for those that were."""
        results = self.state / f"{self.commits[number]}.json"
        missing = [name for name in names if name not in read(results)["pairs"]]
        if missing:
            with tempfile.TemporaryDirectory() as folder:
                _package(self.commits[number], Path(folder))
                command = [sys.executable, __file__, "--measure", str(results)]
                environment = {**os.environ, "PYTHONPATH": folder}
                subprocess.run(command, input=json.dumps(missing), text=True, env=environment, check=True)
        hashes = read(results)["pairs"]
        for name in names:
            self.known.setdefault(name, {})[number] = bytes_of(hashes[name])

    def changes(self, name: str) -> Iterator[tuple[int, int]]:
        """The spans between measured commits in which a pair changed."""
        measured = self.known[name]
        yield from ((a, b) for a, b in pairwise(sorted(measured)) if measured[a] != measured[b])


def _package(commit: str, folder: Path) -> None:
    """Write the package as it was at a commit into a folder."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True)
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive.stdout, check=True)


def trace(history: History, before: Mapping[str, Hashes]) -> dict[str, list[str]]:
    """Return, for each pair that differs at HEAD from the first commit, the commits at which its bytes changed."""
    last = len(history.commits) - 1
    history.known = {name: {0: bytes_of(hashes)} for name, hashes in before.items()}
    history.run(last, list(before))
    for number in range(1, last):  # what another run measured
        known = read(history.state / f"{history.commits[number]}.json")["pairs"]
        history.run(number, [name for name in before if name in known])
    while True:
        halves: dict[int, list[str]] = {}
        for name in before:
            for a, b in history.changes(name):
                if b - a > 1:
                    halves.setdefault((a + b) // 2, []).append(name)
        if not halves:
            return {n: [history.commits[b] for _, b in history.changes(n)] for n in before if _differs(history, n)}
        for number, names in sorted(halves.items()):
            history.run(number, names)


def _differs(history: History, name: str) -> bool:
    measured = history.known[name]
    return measured[0] != measured[len(history.commits) - 1]


def commits_since(first: str) -> list[str]:
    """A commit and those on the way from it to HEAD, as 12 digits, oldest first."""
    log = ["git", "-C", str(ROOT), "log", "--reverse", "--first-parent", "--abbrev=12", "--format=%h"]
    later = subprocess.run([*log, f"{first}..HEAD"], capture_output=True, text=True, check=True).stdout.split()
    return [subprocess.run([*log, "-1", first], capture_output=True, text=True, check=True).stdout.strip(), *later]


def main() -> None:
    """Trace all pairs, or measure those that stand on standard input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, help="folder of what was measured of each commit")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        names = set(json.load(sys.stdin))
        measure([pair for pair in chosen([]) if pair.name in names], arguments.measure, 1)
        return
    arguments.state.mkdir(parents=True, exist_ok=True)
    earlier = read(CAUSES)
    history = History(commits_since(earlier.get("commit", RECORDED_AT)), arguments.state)
    at_hand = {pair.name for pair in chosen([])}
    before = {name: earlier["pairs"].get(name, hashes) for name, hashes in read(RESULTS)["pairs"].items()}
    later = trace(history, {name: hashes for name, hashes in before.items() if name in at_hand})
    last = len(history.commits) - 1
    pairs = dict(earlier["pairs"])
    for name, commits in later.items():
        model, record, _ = history.known[name][last]
        commits = [*pairs.get(name, {"commits": []})["commits"], *commits]
        pairs[name] = {"commits": commits, "model": model, "record": record}
    write(CAUSES, {"commit": history.commits[-1], "pairs": pairs})
    print(f"{len(later)} of {len(history.known)} pairs changed since {history.commits[0]}; see {CAUSES}")


if __name__ == "__main__":
    main()
