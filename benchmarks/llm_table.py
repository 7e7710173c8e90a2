"""The table of `llm_exports.py`: what onnxprune makes of each model that was exported."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

_COLUMNS = """| model | kinds (~ inexact) | exact | inexact | layers | without --resize-io | removed against masked |
|---|---|---|---|---|---|---|"""
_SAID = """# What is found in current exporters' transformers

Written by `python benchmarks/llm_exports.py table FOLDER --output FILE` (its docstring says how the models are made and
what the columns mean). Two layers, random weights; the forms of onnxruntime-genai are 128 wide, the others 64. Each row
ran at two settings of its free dimensions, with caches that are not empty; the branches of merged decoders are both run
in `tests/pipeline/test_merged.py`. Limits: 1e-4, 1e-2 in float16. Products of int4 weights compute with activations as
they are, for their kernels else round these to 8 bits, and jump where sums differ in the last bit.

ONNX Runtime has no kernel for processors that normalises heads inside GroupQueryAttention, as `qwen3-genai-fp16` does;
`tests/structure/test_normalised_heads.py` runs such a node taken apart.
"""


def table(folder: Path, only: list[str], output: Path | None) -> None:
    """Print a line for each model that was written; one that was refused is named at the end.

    With a file for the table, each line is written as it is measured; lines that it has are not measured again.
    """
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "tests")]
    rows = _read(output) if output is not None and output.exists() else {}
    print(_COLUMNS)
    written = [path for path in sorted(folder.iterdir()) if not only or any(word in path.name for word in only)]
    refused = [path.name for path in written if not (path / "model.onnx").exists()]
    for path in written:
        if path.name in refused or path.name in rows:
            continue
        start = time.process_time()
        rows[path.name] = f"| {path.name} | {' | '.join(_cells(path / 'model.onnx'))} |"
        print(f"{rows[path.name]}  {time.process_time() - start:.0f} CPU s", flush=True)
        if output is not None:
            lines = [_SAID, _COLUMNS, *(rows[name] for name in sorted(rows)), "", _refusals(refused), ""]
            output.write_text("\n".join(lines), encoding="utf-8")
    print(f"\n{_refusals(refused)}")


def _read(output: Path) -> dict[str, str]:
    """The lines of a table, by model."""
    lines = output.read_text(encoding="utf-8").splitlines()
    found = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
    return {name: line for name, line in found.items() if name != "model"}


def _refusals(names: list[str]) -> str:
    return f"Not written by their exporter: {', '.join(names) or 'none'}"


def _half(model: Any) -> bool:
    """Whether the weights are in float16."""
    return any(value.dtype is not None and value.dtype.name == "FLOAT16" for value in model.graph.initializers.values())


def _cells(path: Path) -> list[str]:
    """Kinds, shares of the weights and the verdict of the oracle, with caches that may be narrowed where there are."""
    import oracle

    from onnxprune.graph.narrowing import free_caches
    from onnxprune.runtime.probe import known_facts
    from onnxprune.structure.analysis import analyse
    from onnxprune.structure.blocks import layers_of, residual_blocks
    from onnxprune.verification.comparable import comparable

    def load() -> Any:
        model = comparable(oracle.normalised(path))
        free_caches(model)
        return model

    structure, kept = (analyse(model, known_facts(model)) for model in (load(), oracle.normalised(path)))
    kinds: dict[str, int] = {}
    for group in structure.groups:
        name = f"{group.kind}{'~' if group.inexact else ''}"
        kinds[name] = kinds.get(name, 0) + len(group)
    shares = [structure.prunable_share(exact=exact) for exact in (True, False)]
    before = kept.prunable_share(exact=False)
    limit = 1e-2 if _half(kept.model) else 1e-4
    try:
        verdict = oracle.check(load, 0.4, 1, facts=known_facts)
        good = verdict.difference <= limit and verdict.signal > limit
        said = f"{verdict.difference:.0e} at {verdict.settings} settings{'' if good else ', TOO LARGE'}"
    except Exception as error:
        reason = str(error).partition("Status Message: ")[2] or f"{type(error).__name__}: {error}"
        said = f"not run: {reason.splitlines()[0].split('. ')[0][:90]}"
    listed = ", ".join(f"{name} {count}" for name, count in sorted(kinds.items()))
    cells = [f"{part / max(whole, 1):.2f}" for part, whole in shares]
    return [
        listed,
        *cells,
        str(len(layers_of(residual_blocks(structure)))),
        f"{before[0] / max(before[1], 1):.2f}",
        said,
    ]
