"""Tools that prune ONNX files, side by side: half of the weights with their units, on exported networks.

    pip install onnxsim==0.8.1 onnxslim
    python benchmarks/tools.py FOLDER_OF_MODELS [...]  ->  benchmarks/results/tools.json and .md
    python benchmarks/tools.py                         ->  benchmarks/results/tools.md anew, from the .json

Of each model and tool: does the result run in ONNX Runtime on inputs that the original runs, how many of the
parameters are left, and how long one run takes, after / before, in alternation on one thread. onnxprune's result is
also compared with the original whose removed units are set to zero; the others name no units to compare with. onnxslim
prunes nothing: it is the line that says what rewriting alone brings. Each case runs in a process of its own with a
limit on its time, so that a crash is a result like another.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
TOOLS = ("onnxprune", "onnxsim", "onnxslim")
_SHARE = 0.5
_SECONDS = 300


def pruned(tool: str, path: Path) -> tuple[Any, dict[str, Any]]:
    """The result of a tool as a model, and what it says itself."""
    from onnxprune import model_io

    if tool == "onnxprune":
        from onnxprune.pipeline.run import prune

        result = prune(path, structure="channels", sparsity=_SHARE, latency=False, accept_unproved=True)
        verdict = result.verdict
        proved = verdict is not None and not verdict.unproved
        return result.model, {"difference": verdict.removed_vs_masked if verdict is not None and proved else None}
    import onnx

    proto = onnx.load(path)
    if tool == "onnxsim":
        import onnxsim

        return model_io.load_any(onnxsim.apply_structured_pruning(proto, sparsity=_SHARE)), {}
    import onnxslim

    return model_io.load_any(onnxslim.slim(proto)), {}


def case(tool: str, path: Path) -> dict[str, Any]:
    """One model and tool, measured."""
    from onnxprune import model_io, runtime
    from onnxprune.graph import size
    from onnxprune.verification.verdict import measure_latency, sample_inputs

    original = model_io.load(path)
    inputs = sample_inputs(original)
    model, said = pruned(tool, path)
    session = runtime.make_session(model)
    for feeds in inputs:
        runtime.run(session, feeds)
    left = size.figures(model).parameters / size.figures(original).parameters
    latency = measure_latency(original, model, runtime.one_sample(original, instead=inputs[0]))
    return {"runs": True, "parameters": round(left, 3), "latency": round(latency.ratio, 3), **said}


def cases(models: list[Path], rows: dict[str, Any]) -> Iterator[None]:
    """Measure what is missing of all models and tools, each case in a process of its own."""
    for path in models:
        row = rows.setdefault(path.stem, {})
        for tool in [tool for tool in TOOLS if tool not in row]:
            command = [sys.executable, __file__, "--case", tool, str(path)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
                lines = done.stdout.splitlines()
                entry = json.loads(lines[-1]) if done.returncode == 0 else _failure(done.stderr)
            except subprocess.TimeoutExpired:
                entry = {"runs": False, "why": f"more than {_SECONDS} s"}
            row[tool] = entry
            print(path.stem, tool, entry, flush=True)
            yield


def _failure(text: str) -> dict[str, Any]:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return {"runs": False, "why": lines[-1][:200] if lines else "it crashed"}


def table(content: dict[str, Any]) -> str:
    """The results as Markdown."""
    tools = content["tools"]
    heads = [f"{tool} {tools[tool]}" for tool in TOOLS]
    lines = [
        f"Parameters left, and latency after / before ({content['date']}; `python benchmarks/tools.py`).", "",
        "| model | " + " | ".join(heads) + " |", "|---|" + "---|" * len(TOOLS),
    ]  # fmt: skip
    for name, row in content["models"].items():
        cells = [_cell(row[tool]) for tool in TOOLS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(entry: dict[str, Any]) -> str:
    if entry["runs"]:
        return f"{entry['parameters']:.2f}, {entry['latency']:.2f}"
    return "nothing can go" if "NothingToPrune" in entry["why"] else "does not run"


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*", help="folders of .onnx files, or files")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(case(arguments.case[0], Path(arguments.case[1]))))
        return
    file = RESULTS / "tools.json"
    files = [f for p in arguments.models for f in (sorted(p.glob("*.onnx")) if p.is_dir() else [p])]
    if not files:
        (RESULTS / "tools.md").write_text(table(json.loads(file.read_text())))
        return
    versions = {tool: version(tool) for tool in TOOLS[1:]}
    from onnxprune.pipeline.version import version as our_version

    tools = {"onnxprune": our_version(), **versions}
    content: dict[str, Any] = {"date": datetime.date.today().isoformat(), "share": _SHARE, "tools": tools, "models": {}}
    if file.exists():
        content["models"] = json.loads(file.read_text())["models"]
    for _ in cases(files, content["models"]):
        file.write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / "tools.md").write_text(table(content))


if __name__ == "__main__":
    main()
