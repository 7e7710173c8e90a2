"""Write docs/recovery.md from benchmarks/results/recovery_mnist.json: ``python docs/generate_recovery.py``."""

from __future__ import annotations

import json
import statistics
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
squares in three steps with scores and statistics renewed. Every method starts from the plain network; *align* does
least squares first. An empty cell was not measured, or the method has nothing to do there. The rows of LeNet-5 were
measured last.
"""

_READING = """\

What this says, on these networks:

- Least squares is the strongest where units go, by a wide margin, and is what `--recover auto` does there. OBC also
  chooses anew which weights are zero, and comes nearer to the dense outputs than least squares on the given zeros. At
  4x the test error hardly tells the two apart.
- Units chosen by OBC, which sees what the others can make up for, leave less to recover than those chosen by magnitude.
  Steps add little to that.
- Alignment by gradients goes on from least squares, with a few seconds of one core, and some 22 with high effort. On
  LeNet-5 it makes up for most of what least squares leaves.
- Bias correction alone often makes a network that lost many units worse. Matching mean and variance helps far more, and
  where BatchNormalization is in the graph its re-estimation does the same.
{single}
## By gradients

`--recover align`, which `--effort medium` or `high` adds to `auto`, trains what the closed forms leave, without labels
and with PyTorch. Each block of the stream (see [units_with_data.md](units_with_data.md)) is trained by itself to give
what the dense block gives. Then the end of the network is trained as a whole to give the dense values at all cuts.
Where channels of such a value are gone, those that are left are compared. What else there is to know:

- Leading blocks up to a cut with less than a third of the error in front of the outputs are not trained with the whole:
  they cost most and gain least. What they and the dense network give is made once for all inputs, so that a step runs
  the end of the pruned network alone.
- Inputs are drawn again where the only one is a picture: crops, mirror images and mixtures of two pictures where the
  dense network minds mirror images little, else small warps and mixtures where it minds these little. That is done 4
  times, 20 with `--effort high`. Where 4 GB do not hold them, they are stored in 16 bits, and then fewer are drawn.
- Scores of classes are trained, too, at temperature 3 (Hinton et al. 2015), where inputs show what counts: nine of ten
  that are held back have a class that others show. Elsewhere what brings the scores nearer ruins them on other classes.
  There the layers behind the last cut are put back to the dense numbers that are left. Then they are fitted by ridge
  regression, as in least squares, to what they read after the training. Embeddings are compared by cosine, other
  outputs by squares on the scale of each part.
- Steps are relative to the root mean square of each row of a weight, so that a folded BatchNormalization does no harm.
  For a block the rate is half of the best of a short range test. The whole begins at .003, since a few steps favour a
  rate that is too low for thousands. Where a sixth of the steps brings nothing on held-back inputs, or a look shows 5 %
  more error, it begins anew with a third of the rate. All tries share the steps. What is looked at is the running
  mean of the last steps (Polyak and Juditsky 1992).
- The whole takes as many steps as 4.6e11 multiply-adds allow, with `--effort high` 9e12: at least 200 and at most
  1,200 and 4,800.
- One sample of eight is held back from all of this, and from the closed forms before it. A fit lowers the error on the
  samples that it saw far more than on others: on MobileNetV2 at half of the work, .66 and 1.07 of the variance of the
  last features. A block keeps its new numbers where its error on the held ones falls. In the end that state is kept
  whose outputs are nearest to the dense ones there: after the whole, after the blocks, or before. Where it is the one
  before, the closed forms run again on all samples.
  The time is told before it begins; the same seed gives the same numbers.

## Without data

Neuron merging, whole units removed by magnitude: relative squared error of the outputs against the dense model, on
held-out inputs and with accuracy where the model has some, else on random inputs. It helps some networks much and harms
others, and weights that nobody asked to change stay bit by bit: so it is an option (`--recover merge`), not the
default.

| model | sparsity | units merged | output error, plain | merged | accuracy, plain | merged |
|---|---|---|---|---|---|---|
"""


_SINGLE = """
## Single weights and 2:4

From `benchmarks/results/single_weights.json` (`python benchmarks/single_weights.py --data-root DATA --minilm FILE`):
accuracy in percent of a ResNet on Fashion-MNIST with 1,024 unlabelled images, exported with BatchNormalization folded
and not. Of MiniLM it is Spearman's correlation on the STS benchmark with 512 unlabelled sentences. Mean and deviation
over the draws of the calibration data; CPU seconds of the whole run. A row that names no recovery is `--recover auto`.

| network | settings | score | deviation | CPU s | draws |
|---|---|---|---|---|---|
"""

_SINGLE_READING = """
- Zeros that ADMM finds (ALPS) beat those of the column sweep (OBC, SparseGPT), more so the fewer weights are left, and
  cost about the same: `--recover auto` takes it for single weights and N:M.
- How many weights each layer loses is LAMP's choice by default; both exports end alike.
- Steps (`--iterations`) add nothing beyond the deviation of the draws, and each costs as much as the first.
"""

_LAYERS = """
All {count} layers of MiniLM at 70 %, from the same Gram matrices: the error of ALPS is below that of SparseGPT on
{alps}, and {ratio:.2f} of it in the mean. SparseSwaps lowers that of Wanda's mask on {swaps}, to {swapped:.2f} of it,
and raises it on {raised}.
"""


def single_weights() -> str:
    """Return the section on single weights."""
    entries = json.loads((RESULTS / "single_weights.json").read_text())["entries"]
    layers = [e for e in entries if "layer" in e]
    entries = sorted((e for e in entries if "layer" not in e), key=lambda e: str(e["network"]))
    lines = []
    for key in dict.fromkeys((e["network"], e["case"]) for e in entries):
        own = [e for e in entries if (e["network"], e["case"]) == key]
        scores = [e["score"] for e in own]
        digits = 4 if max(scores) <= 1 else 2
        seconds = f"{sum(e['seconds'] for e in own) / len(own):.0f}" if "seconds" in own[0] else ""
        spread = f"{statistics.pstdev(scores):.{digits}f}" if len(own) > 1 else ""
        lines.append(_row([*key, f"{statistics.fmean(scores):.{digits}f}", spread, seconds, str(len(own))]))
    told = (
        ""
        if not layers
        else _LAYERS.format(
            count=len(layers),
            alps=sum(e["alps"] < e["sparsegpt"] for e in layers),
            ratio=statistics.fmean(e["alps"] / e["sparsegpt"] for e in layers),
            swaps=sum(e["swapped"] < e["wanda"] for e in layers),
            swapped=statistics.fmean(e["swapped"] / e["wanda"] for e in layers),
            raised=sum(e["swapped"] > e["wanda"] for e in layers),
        )
    )
    return _SINGLE + "\n".join(lines) + "\n" + _SINGLE_READING + told


def page() -> str:
    """Return the page as Markdown."""
    entries = json.loads((RESULTS / "recovery_mnist.json").read_text())["entries"]
    columns = [
        name
        for name in ("dense", "plain", *METHODS, "align, high effort", "in steps")
        if any(name in e for e in entries)
    ]
    lines = [_INTRODUCTION, _row(["network", "cut", "chosen by", *columns, "seeds"])]
    lines.append("|---" * (len(columns) + 4) + "|")
    for key in dict.fromkeys((e["network"], e["cut"], e["chosen"]) for e in entries):
        own = [e for e in entries if (e["network"], e["cut"], e["chosen"]) == key]
        lines.append(_row([*key, *(_mean(own, name) for name in columns), str(len(own))]))
    lines.append(_READING.format(single=single_weights()).rstrip("\n"))
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
