"""The table of `llm_exports.py`: what onnxprune makes of each model that was exported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def table(folder: Path, only: list[str]) -> None:
    """Print a line for each model that was written; one that was refused is named at the end."""
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "tests")]
    print("| model | kinds (~ inexact) | exact | inexact | layers | without --resize-io | removed against masked |")
    print("|---|---|---|---|---|---|---|")
    refused = []
    for path in sorted(folder.iterdir()):
        if only and not any(word in path.name for word in only):
            continue
        if (path / "model.onnx").exists():
            print(f"| {path.name} | {' | '.join(_cells(path / 'model.onnx'))} |", flush=True)
        else:
            refused.append(path.name)
    print(f"\nNot written by their exporter: {', '.join(refused) or 'none'}")


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

    def load() -> Any:
        model = oracle.normalised(path)
        free_caches(model)
        return model

    structure, kept = (analyse(model, known_facts(model)) for model in (load(), oracle.normalised(path)))
    kinds: dict[str, int] = {}
    for group in structure.groups:
        name = f"{group.kind}{'~' if group.inexact else ''}"
        kinds[name] = kinds.get(name, 0) + len(group)
    shares = [structure.prunable_share(exact=exact) for exact in (True, False)]
    before = kept.prunable_share(exact=False)
    # Kernels that round activations to 8 bits (accuracy_level 4) jump where sums differ in the last bit.
    limit = 1e-2 if structure.packed or _half(kept.model) else 1e-4
    try:
        verdict = oracle.check(load, 0.4, 1, facts=known_facts)
        good = verdict.difference <= limit and verdict.signal > limit
        said = f"{verdict.difference:.0e} at {verdict.settings} settings{'' if good else ', TOO LARGE'}"
    except Exception as error:
        said = f"not run: {type(error).__name__}: {str(error)[:80]}"
    listed = ", ".join(f"{name} {count}" for name, count in sorted(kinds.items()))
    cells = [f"{part / max(whole, 1):.2f}" for part, whole in shares]
    return [
        listed,
        *cells,
        str(len(layers_of(residual_blocks(structure)))),
        f"{before[0] / max(before[1], 1):.2f}",
        said,
    ]
