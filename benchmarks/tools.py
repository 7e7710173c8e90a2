"""Tools that remove units, side by side: half of the weights with their units, on exported networks.

    pip install torch torchvision onnxsim==0.8.1 onnxslim==0.1.98 torch-pruning==1.6.1 torch-kirigami==0.2.1
    python benchmarks/tools.py files FOLDER_OF_MODELS [...]
    python benchmarks/tools.py networks [--data-root DATA --mobilenet mobilenet_v2_imagenet.onnx --weights v2.pth]
        [--only resnet50 ...] [--tools torch-kirigami ...]
    python benchmarks/tools.py table                       ->  benchmarks/results/tools.md anew, from tools.json

Files go to the tools that read ONNX. Networks are those of which a PyTorch module is at hand: the ten of depgraph.py,
the ResNet of models/, and MobileNetV2 with its weights where they are given. Torch-Pruning and torch-kirigami cut the
module, which is then exported; the others cut the export. Torch-Pruning is given the ratio at which half of the
parameters go, torch-kirigami that number as its budget.

Of each: does the result run in ONNX Runtime on inputs that the original runs, how many of the parameters are left, and
how long one run takes, after / before, in alternation on one thread. onnxprune's result is also compared with the
original whose removed units are set to zero; the others name no units to compare with. onnxslim prunes nothing: it is
the line that says what rewriting alone brings. Where there are data, each tool may use the same inputs without labels
(PyTorch's BatchNorms are estimated anew on them), and accuracy is that of other data. Each case runs in a process of
its own with a limit on its memory and on the CPU time of the cut, so that a crash is a result like another, and a
search that goes on has "gave up after N CPU s". What is in benchmarks/results/tools.json is not measured again; each
case has its own date, and the CPU seconds that its cut took.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
MODELS = Path(__file__).resolve().parents[1] / "models"
ONNX_TOOLS = ("onnxprune", "onnxsim", "onnxslim")
TORCH_TOOLS = ("torch-pruning", "torch-kirigami")
TITLES = {"torch-pruning": "Torch-Pruning"}
DIGITS, MOBILENET = "digits_resnet", "mobilenet_v2"
_SHARE = 0.5
_LIMIT = 300
"""CPU seconds that a tool may take for its cut."""
_MOST_SHOWN = 200  # characters of what a tool that fails says
_TRIES = 7  # of the ratio at which half of the parameters go
_MEMORY = 9 << 30  # bytes that a tool in PyTorch may take; more on a network of this size is a failure


def pruned_file(tool: str, path: Path, inputs: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    """The result of a tool that reads ONNX, and what it says itself."""
    from onnxprune import model_io

    if tool == "onnxprune":
        from onnxprune.pipeline.run import prune

        settings = {"structure": "channels", "sparsity": _SHARE, "accept_unproved": True}
        result = prune(path, latency=False, calibration=inputs, **settings)
        verdict = result.verdict
        proved = verdict is not None and not verdict.unproved
        return result.model, {"difference": verdict.removed_vs_masked if verdict is not None and proved else None}
    import onnx

    proto = onnx.load(path)
    if tool == "onnxslim":
        import onnxslim

        return model_io.load_any(onnxslim.slim(proto)), {}
    import onnxsim

    if inputs is None:
        return model_io.load_any(onnxsim.apply_structured_pruning(proto, sparsity=_SHARE)), {}
    from onnxprune.data.batches import batches

    feeds = [dict(feed) for feed in batches(model_io.load(path), inputs, 32)]
    made = onnxsim.apply_structured_wanda_pruning(proto, calibration_data=feeds, sparsity=_SHARE, global_sparsity=False)
    return model_io.load_any(made), {}


def pruned_module(tool: str, make: Callable[[], Any], original: Any, inputs: Mapping[str, Any] | None) -> Any:
    """The result of a tool that cuts PyTorch modules, exported."""
    import torch
    from leaderboard_methods import exported, re_estimated

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    value = original.graph.inputs[0]
    shape = [1, *(int(d) for d in value.shape[1:])]
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    cut = _by_torch_pruning if tool == "torch-pruning" else _by_kirigami
    module = cut(make, example).eval()
    if inputs is not None:
        (images,) = inputs.values()
        module = re_estimated(module, torch.from_numpy(images))
    return exported(module, example, str(value.name))


def _by_torch_pruning(make: Callable[[], Any], example: Any) -> Any:
    """Groups of coupled channels by magnitude, all layers at the one ratio that comes nearest to the share."""
    import torch
    import torch_pruning

    low, high, best = 0.0, 1.0, None
    for _ in range(_TRIES):
        ratio, module = (low + high) / 2, make()
        before = _count(module)
        heads = [m for m in module.modules() if isinstance(m, torch.nn.Linear)][-1:]
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        torch_pruning.pruner.BasePruner(
            module, example, importance, pruning_ratio=ratio, ignored_layers=heads
        ).step()  # fmt: skip
        gone = 1 - _count(module) / before
        low, high = (low, ratio) if gone > _SHARE else (ratio, high)
        if best is None or abs(gone - _SHARE) < best[0]:
            best = abs(gone - _SHARE), module
    assert best is not None
    return best[1]


def _by_kirigami(make: Callable[[], Any], example: Any) -> Any:
    """Coupled channels by magnitude until a budget of parameters is met, as its page shows."""
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import Greedy, GroupMagnitude, ParameterBudget, Pruner

    module = make()
    pruner = Pruner(module, graph=DependencyGraph.build(module, args=(example,)))
    budget = ParameterBudget(max_params=round(_count(module) * (1 - _SHARE)))
    module, _ = pruner.prune(pruner.discover_candidates(), budget=budget, strategy=Greedy(GroupMagnitude(p=2)))
    return module


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def module_of(name: str, path: Path, weights: Path | None) -> Callable[[], Any]:
    """What makes a network as a PyTorch module, with the weights of the file."""
    import torch
    from depgraph import architecture
    from leaderboard_methods import with_weights

    from onnxprune import model_io

    if name == DIGITS:
        sys.path.append(str(MODELS))
        from train_digits_resnet import ResNet

        return lambda: with_weights(ResNet(), model_io.load(path))
    if name == MOBILENET:
        assert weights is not None
        state = torch.load(weights, weights_only=True)

        def trained() -> Any:
            module = architecture(name)
            module.load_state_dict(state)
            return module.eval()

        return trained
    return lambda: architecture(name)


class Data:
    """Inputs without labels, and the accuracy on other data, of the networks that have some."""

    def __init__(self, name: str, path: Path, root: Path | None) -> None:
        """Take a network, its file and the folder with imagenet_1000/."""
        self._name, self._path, self._root = name, path, root

    def calibration(self) -> dict[str, Any] | None:
        """The inputs, None where there are none."""
        from units import Digits, Pictures

        from onnxprune import model_io

        if self._name == DIGITS:
            return Digits().calibration(model_io.load(self._path), 0)
        if self._name == MOBILENET and self._root is not None:
            return Pictures(self._root, self._path).calibration(model_io.load(self._path), 0)
        return None

    def accuracy(self, model: Any) -> float:
        """In percent."""
        from units import Pictures

        from onnxprune.data.readers import open_data
        from onnxprune.verification.evaluate import evaluate

        if self._name == MOBILENET:
            assert self._root is not None
            return Pictures(self._root, self._path).score(model)
        return 100 * evaluate(model, open_data(model, MODELS / "digits_resnet.npz"))[1]


def case(tool: str, path: Path, name: str, root: Path | None, weights: Path | None) -> dict[str, Any]:
    """One model and tool, measured."""
    from onnxprune import model_io, runtime
    from onnxprune.graph import size
    from onnxprune.verification.verdict import measure_latency, sample_inputs

    original, data = model_io.load(path), Data(name, path, root)
    inputs, calibration, said = sample_inputs(original), data.calibration(), dict[str, Any]()
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(start) + _LIMIT, resource.RLIM_INFINITY))
    if tool in TORCH_TOOLS:
        from depgraph import _torchvision_without_operators

        _library = _torchvision_without_operators()
        model = pruned_module(tool, module_of(name, path, weights), original, calibration)
    else:
        model, said = pruned_file(tool, path, calibration)
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    seconds = round(time.process_time() - start, 1)
    session = runtime.make_session(model)
    for feeds in inputs:
        runtime.run(session, feeds)
    left = size.figures(model).parameters / size.figures(original).parameters
    latency = measure_latency(original, model, runtime.one_sample(original, instead=inputs[0]))
    if calibration is not None:
        said["accuracy"] = round(data.accuracy(model), 1)
        if tool == "onnxprune":
            said["dense"] = round(data.accuracy(original), 1)
    measured = {"parameters": round(left, 3), "latency": round(latency.ratio, 3), "seconds": seconds}
    return {"runs": True, **measured, **said}


def cases(paths: Mapping[str, Path], tools: tuple[str, ...], rows: dict[str, Any], more: list[str]) -> Iterator[None]:
    """Measure what is missing of all models and tools, each case in a process of its own."""
    for tool in tools:
        for name, path in paths.items():
            row = rows.setdefault(name, {})
            if tool in row:
                continue
            command = [sys.executable, "-W", "ignore", __file__, "case", tool, str(path), "--name", name, *more]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == -signal.SIGXCPU:
                row[tool] = {"runs": False, "why": f"gave up after {_LIMIT} CPU s"}
            elif done.returncode:
                row[tool] = _failure(done.stderr)
            else:
                row[tool] = json.loads(done.stdout.splitlines()[-1])
            row[tool]["date"] = datetime.date.today().isoformat()
            print(name, tool, row[tool], flush=True)
            yield


def _failure(text: str) -> dict[str, Any]:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return {"runs": False, "why": lines[-1][:_MOST_SHOWN] if lines else "it crashed"}


def table(content: Mapping[str, Any]) -> str:
    """The results as Markdown: the files, the networks, and why what failed did."""
    lines = ["Parameters left, and latency after / before (`python benchmarks/tools.py`).", ""]
    failures: list[str] = []
    for kind, tools in (("models", ONNX_TOOLS), ("networks", (*ONNX_TOOLS, *TORCH_TOOLS))):
        heads = [f"{TITLES.get(tool, tool)} {content['tools'][tool]}" for tool in tools]
        heads = [kind[:-1], heads[0], "removed = masked", *heads[1:], "measured"]
        lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for name, row in content[kind].items():
            ours, *others = [_cell(row.get(tool), failures) for tool in tools]
            cells = [name, ours, _equal(row.get("onnxprune", {})), *others, _dates(row)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join([*lines, *failures]).rstrip() + "\n"


def _cell(entry: Mapping[str, Any] | None, failures: list[str]) -> str:
    if entry is None:
        return "not measured"
    if entry["runs"]:
        accuracy = f", {entry['accuracy']:.1f} %" if "accuracy" in entry else ""
        return f"{entry['parameters']:.2f}, {entry['latency']:.2f}{accuracy}"
    if "NothingToPrune" in entry["why"]:
        return "nothing can go"
    if entry["why"].startswith("gave up"):
        return str(entry["why"])
    cut = "..." if len(entry["why"]) == _MOST_SHOWN else "."
    why = re.sub(r"^onnxprune[.]errors[.]\w+: ", "", entry["why"]).rstrip(". :")
    failures.append(f"{len(failures) + 1}. {why}{cut}")
    return f"fails ({len(failures)})"


def _equal(entry: Mapping[str, Any]) -> str:
    """The largest difference between the smaller graph and the masked original, of the largest output."""
    difference = entry.get("difference")
    return "" if difference is None else f"{difference:.0e}"


def _dates(row: Mapping[str, Any]) -> str:
    days = sorted({entry["date"] for entry in row.values()})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def exports(folder: Path, mobilenet: Path | None, only: list[str] | None) -> dict[str, Path]:
    """The files of the networks, or of some of them, exported into a folder where they are none."""
    from depgraph import PUBLISHED, _quiet, _torchvision_without_operators, export

    _library = _torchvision_without_operators()
    paths = {DIGITS: MODELS / f"{DIGITS}.onnx"}
    if mobilenet is not None:
        paths[MOBILENET] = mobilenet
    for name in [name for name in PUBLISHED if only is None or name in only]:
        with _quiet():
            paths[name] = export(name, "legacy", folder)
    return {name: path for name, path in paths.items() if only is None or name in only}


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("files", "networks", "table", "case"))
    parser.add_argument("models", nargs="*", help="folders of .onnx files, or files")
    parser.add_argument("--data-root", type=Path, help="folder of imagenet_1000/")
    parser.add_argument("--mobilenet", type=Path, help="MobileNetV2, BatchNorm folded")
    parser.add_argument("--weights", type=Path, help="its PyTorch weights")
    parser.add_argument("--only", nargs="*", help="networks")
    parser.add_argument("--tools", nargs="*", choices=(*ONNX_TOOLS, *TORCH_TOOLS), help="tools of which to measure")
    parser.add_argument("--name", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "case":
        tool, path = arguments.models
        print(json.dumps(case(tool, Path(path), arguments.name, arguments.data_root, arguments.weights)))
        return
    file = RESULTS / "tools.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"models": {}, "networks": {}}
    if arguments.what != "table":
        from onnxprune.pipeline.version import version as our_version

        tools = {"onnxprune": our_version(), **{tool: version(tool) for tool in (*ONNX_TOOLS[1:], *TORCH_TOOLS)}}
        content.update(share=_SHARE, tools=tools)
        asked = arguments.tools or (*ONNX_TOOLS, *TORCH_TOOLS)
        given = [Path(p) for p in arguments.models]
        with tempfile.TemporaryDirectory() as folder:
            if arguments.what == "files":
                paths = {f.stem: f for p in given for f in (sorted(p.glob("*.onnx")) if p.is_dir() else [p])}
                work = cases(paths, tuple(tool for tool in ONNX_TOOLS if tool in asked), content["models"], [])
            else:
                flags = {"--data-root": arguments.data_root, "--weights": arguments.weights}
                more = [text for flag, value in flags.items() if value is not None for text in (flag, str(value))]
                networks = content.setdefault("networks", {})
                work = cases(
                    exports(Path(folder), arguments.mobilenet, arguments.only),
                    tuple(tool for tool in (*ONNX_TOOLS, *TORCH_TOOLS) if tool in asked),
                    networks,
                    more,
                )
            for _ in work:
                file.write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / "tools.md").write_text(table(content))


if __name__ == "__main__":
    main()
