"""Write docs/recovery.md from benchmarks/results/recovery_mnist.json: ``python docs/generate_recovery.py``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.recovery import METHODS

TARGET = Path(__file__).with_name("recovery.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

_INTRODUCTION = """\
# Recovery without labels or training

Written by `docs/generate_recovery.py` from `benchmarks/results/recovery_mnist.json` (`python
benchmarks/recovery_mnist.py --data-root DATA`) and `merging.json` (`python benchmarks/merging.py`); do not edit. The
methods and their formulas are in [criteria.md](criteria.md).

Test error in percent, means over the seeds counted in the last column, with 1,024 unlabelled training images and no
training. *plain* is the pruned network as it is; *chosen by* says by what units or weights went; *in steps* is least
squares in three steps with scores and statistics renewed. Every method starts from the plain network.
"""

_READING = """\

What this says, on these networks:

- Least squares is the strongest where units go, by a wide margin, and is what `--recover auto` does. OBC, which also
  chooses anew which weights are zero, comes nearer to the dense outputs than least squares on the given zeros; at 4x
  the test error hardly tells the two apart.
- Units chosen by OBC, which sees what the others can make up for, leave less to recover than those chosen by magnitude.
  Steps add little to that.
- Bias correction alone often makes a network that lost many units worse. Matching mean and variance helps far more, and
  where BatchNormalization is in the graph its re-estimation does the same.

## Without data

Neuron merging, whole units removed by magnitude: relative squared error of the outputs against the dense model, on
held-out inputs and with accuracy where the model has some, else on random inputs. It helps some networks much and harms
others, and weights that nobody asked to change stay bit by bit: so it is an option (`--recover merge`), not the
default.

| model | sparsity | units merged | output error, plain | merged | accuracy, plain | merged |
|---|---|---|---|---|---|---|
"""


def page() -> str:
    """Return the page as Markdown."""
    entries = json.loads((RESULTS / "recovery_mnist.json").read_text())["entries"]
    columns = [name for name in ("dense", "plain", *METHODS, "in steps") if any(name in e for e in entries)]
    lines = [_INTRODUCTION, _row(["network", "cut", "chosen by", *columns, "seeds"])]
    lines.append("|---" * (len(columns) + 4) + "|")
    for key in dict.fromkeys((e["network"], e["cut"], e["chosen"]) for e in entries):
        own = [e for e in entries if (e["network"], e["cut"], e["chosen"]) == key]
        lines.append(_row([*key, *(_mean(own, name) for name in columns), str(len(own))]))
    lines.append(_READING.rstrip("\n"))
    for row in json.loads((RESULTS / "merging.json").read_text())["rows"]:
        accuracy = [f"{a:.2%}" if a is not None else "" for a in (row["plain accuracy"], row["merged accuracy"])]
        errors = [f"{row['plain error']:.4f}", f"{row['merged error']:.4f}"]
        lines.append(_row([row["model"], f"{row['sparsity']:.0%}", row["merged"], *errors, *accuracy]))
    return "\n".join(lines) + "\n"


def _mean(entries: Sequence[Mapping[str, Any]], name: str) -> str:
    if not all(name in e for e in entries):
        return ""
    return f"{sum(e[name] for e in entries) / len(entries):.2f}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
