"""Whatever stops a run, and whoever else writes, each of its files is the old one or the new one, whole.

Runs are forked from a process that has imported everything. A second such process also prunes and makes the report
before the fork, so that only the writing is left to do.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_models import two_layers

from onnxprune import model_io
from onnxprune.model_io.file_set import tidy
from onnxprune.pipeline.record import load_record

if not hasattr(os, "fork"):
    pytest.skip("runs are forked", allow_module_level=True)

STARTER = """
import contextlib, io, json, os, resource, signal, sys, time
import jinja2, onnxruntime
from onnxprune.pipeline import run as pipeline
from onnxprune.cli import main
from onnxprune.report import console, html

only_write = sys.argv[1] == "only write"

def once(function, key):
    known = {}
    def remembering(*arguments, **rest):
        found = key(*arguments, **rest)
        if found not in known:
            known[found] = function(*arguments, **rest)
        return known[found]
    return remembering

def before_the_fork(order):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([*order["arguments"][:3], "--report", order["out"] + ".html", "--dry-run", "--force"])

def die_at(step, folder):
    # Python tells of each file opened for writing, each rename, link and removal, before it happens.
    left = step
    def hook(event, about):
        nonlocal left
        writes = event in ("os.rename", "os.link", "os.remove") or event == "open" and "x" in (about[1] or "")
        if writes and str(about[0]).startswith(folder):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def child(order):
    for stream, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(order[stream], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if order["die_at"]:
        die_at(order["die_at"], order["folder"])
    if order["file_limit"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], resource.RLIM_INFINITY))
    try:
        main(order["arguments"])
    except SystemExit as left:
        sys.stdout.flush()
        os._exit(left.code or 0)  # without the destructors of threads that a fork does not have

if only_write:
    pipeline.prune = once(pipeline.prune, lambda model, recipe, **rest: (str(model), recipe.model_dump_json()))
    html.render = once(html.render, lambda original, result, files, sha256='': (id(result), repr(files), sha256))
print("ready", flush=True)
for line in sys.stdin:
    orders = json.loads(line)
    started = []
    for order in orders:
        if only_write:  # ONNX Runtime hangs in the child of a process in which it ran
            before_the_fork(order)
        started.append(os.fork())
        if started[-1] == 0:
            child(order)
    for pid, order in zip(started, orders):
        if order["kill_after"] is not None:
            time.sleep(order["kill_after"])
            os.kill(pid, signal.SIGKILL)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]), flush=True)
"""


class Runs:
    """Starts `onnxprune` in processes that can be killed, and tells with which status they ended."""

    def __init__(self, scratch: Path, what: str) -> None:
        self.scratch = scratch
        command = [sys.executable, "-c", STARTER, what]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def __call__(
        self,
        *runs: list[object],
        folder: Path,
        kill_after: float | None = None,
        die_at: int = 0,
        file_limit: int = 0,
    ) -> list[int]:
        orders = [
            {
                "arguments": [str(argument) for argument in arguments],
                "out": str(self.scratch / f"out{number}"),
                "err": str(self.scratch / f"err{number}"),
                "folder": str(folder),
                "kill_after": kill_after,
                "die_at": die_at,
                "file_limit": file_limit,
            }
            for number, arguments in enumerate(runs)
        ]
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(orders) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def errors(self, number: int = 0) -> str:
        return (self.scratch / f"err{number}").read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Runs that only write; the rest happened before the fork."""
    started = Runs(tmp_path_factory.mktemp("scratch"), "only write")
    yield started
    started.end()


@pytest.fixture
def whole_runs(tmp_path: Path) -> Iterator[Runs]:
    started = Runs(tmp_path, "all")
    yield started
    started.end()


class Place:
    """A folder with a model, what an earlier run wrote there, and what a later run writes."""

    NAMES = ("out.onnx", "record.json", "report.html", "recipe.toml")

    def __init__(self, folder: Path, runs: Runs, *, external: bool = False, hidden: int = 5_000) -> None:
        self.folder = folder
        self.runs = runs
        self.weights = 12 * hidden
        model_io.save(two_layers(hidden), folder / "net.onnx", external=external)
        self.old = self._written(0.25)
        self.new = self._written(0.75)
        assert self.old["out.onnx"] != self.new["out.onnx"]

    def _written(self, sparsity: float) -> dict[str, bytes]:
        assert self.run(sparsity) == 0, self.runs.errors()
        return {name: (self.folder / name).read_bytes() for name in self.NAMES}

    def command(self, sparsity: float) -> list[object]:
        out, record, report, recipe = (self.folder / name for name in self.NAMES)
        files = ["-o", out, "--record", record, "--report", report, "--save-recipe", recipe]
        return [self.folder / "net.onnx", "--sparsity", sparsity, *files, "--force", "--json"]

    def run(self, sparsity: float = 0.75, **how: Any) -> int:
        return self.runs(self.command(sparsity), folder=self.folder, **how)[0]

    def restore(self) -> None:
        tidy(self.folder)
        for name, content in self.old.items():
            (self.folder / name).write_bytes(content)

    def check(self) -> bool:
        """Every file is whole, and the model finds its data; returns whether the model is the new one."""
        content = (self.folder / "out.onnx").read_bytes()
        assert content in (self.old["out.onnx"], self.new["out.onnx"])
        model = model_io.load(self.folder / "out.onnx")
        zeros = sum(int((value.const_value.numpy() == 0).sum()) for value in model.graph.initializers.values())
        assert zeros == self.weights * (0.75 if content == self.new["out.onnx"] else 0.25)
        record = load_record(self.folder / "record.json")
        if model_io.sha256(self.folder / "out.onnx") != record.output.sha256:  # the next run finishes the set
            assert list(self.folder.glob(".*.onnxprune-set"))
            tidy(self.folder)
            assert model_io.sha256(self.folder / "out.onnx") == load_record(self.folder / "record.json").output.sha256
        assert (self.folder / "report.html").read_text().rstrip().endswith("</html>")
        assert (self.folder / "recipe.toml").read_bytes() in (self.old["recipe.toml"], self.new["recipe.toml"])
        return content == self.new["out.onnx"]


@pytest.fixture(scope="module", params=[False, True], ids=["embedded", "external"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, runs: Runs) -> Place:
    return Place(tmp_path_factory.mktemp("place"), runs, external=request.param)


def kill_at_random(place: Place, runs: Runs, count: int) -> None:
    """SIGKILL between the start of a run and a fifth past the time that it takes."""
    command = place.command(0.75)
    start = time.perf_counter()
    assert runs(command, folder=place.folder) == [0]
    seconds = time.perf_counter() - start
    moment = random.Random(0)
    for _ in range(count):
        place.restore()
        runs(command, folder=place.folder, kill_after=moment.uniform(0, 1.2 * seconds))
        place.check()


def test_killed_at_random_moments(place: Place, whole_runs: Runs) -> None:
    kill_at_random(place, whole_runs, 4)


def test_killed_at_random_moments_of_writing(place: Place, runs: Runs) -> None:
    """Most of a run is measuring; here all moments fall into the part that changes files."""
    kill_at_random(place, runs, 25)


@pytest.mark.zoo  # not for its model, for its time
@pytest.mark.timeout(900)
def test_killed_at_fifty_random_moments(place: Place, whole_runs: Runs) -> None:
    kill_at_random(place, whole_runs, 50)


def test_killed_at_each_step_of_writing(place: Place) -> None:
    """Before each file is created, named or removed: all files are complete before the first gets its name."""
    new, step, status = [], 0, -9
    while status == -9:
        step += 1
        place.restore()
        status = place.run(die_at=step)
        new.append(place.check())
    assert status == 0 and step > 2 * len(Place.NAMES)
    assert new == sorted(new) and not new[len(Place.NAMES)] and new[-1]
    kept = {"net.onnx", *(path.name for path in place.folder.glob("*.data")), *Place.NAMES}
    assert {path.name for path in place.folder.iterdir()} == kept  # the last run removed what the killed ones left


@pytest.mark.parametrize(("hidden", "limit"), [(5_000, 1_000), (64, 8_000)], ids=["nothing fits", "the model fits"])
def test_a_full_disk_changes_nothing(runs: Runs, tmp_path: Path, hidden: int, limit: int) -> None:
    """A limit on the size of a file stands for a disk that fills up while it is written."""
    place = Place(tmp_path, runs, hidden=hidden)
    assert (len(place.new["out.onnx"]) < limit) == (hidden == 64) and len(place.new["report.html"]) > limit
    place.restore()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert place.run(file_limit=limit) == 2
    assert "cannot be written" in runs.errors() and runs.errors().count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_runs_into_one_file(place: Place) -> None:
    for name in Place.NAMES:
        (place.folder / name).unlink()
    assert place.runs(place.command(0.25), place.command(0.75), folder=place.folder) == [0, 0]
    place.check()


def test_of_two_runs_without_force_one_writes(place: Place) -> None:
    for name in Place.NAMES:
        (place.folder / name).unlink()
    commands = [[part for part in place.command(share) if part != "--force"] for share in (0.25, 0.75)]
    assert sorted(place.runs(*commands, folder=place.folder)) == [0, 2]
    place.check()
    assert any("exists already" in place.runs.errors(number) for number in (0, 1))
