"""docs/findings.md: what the literature says of pruning, beside what prunebench measured, from the rows alone.

A finding is a claim that one way does better than another at the same compression, data set and seed. The paired
difference over the seeds decides: it *holds* where all seeds agree and their mean is beyond their deviation, is
*reversed* where that is so with the other sign, and is *level* otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from prunebench_networks import NETWORKS
from prunebench_report import Setting, spread, text
from prunebench_table import Measured, Row


class Way(NamedTuple):
    """One side of a comparison; fields as in `Key`. A target of None is that of the row."""

    structure: str = "weights"
    criterion: str = "magnitude"
    allocation: str = "global"
    start: str = "finetune"
    penalty: str = "none"
    target: int | None = None


@dataclass(frozen=True)
class Comparison:
    """What should be better than what.

    Attributes:
        label: In words.
        better, worse: The two sides.
        field: What is compared, a field of `Measured`.
    """

    label: str
    better: Way
    worse: Way
    field: str = "top1"


@dataclass(frozen=True)
class Finding:
    """A claim and how it is checked.

    Attributes:
        title, source: The claim and who made it.
        how: What is compared with what.
        comparisons: All of them decide alike.
        ratios: The compression ratios that the claim is about; others are shown and do not count.
        level_counts: The claim is "as good or better".
    """

    title: str
    source: str
    how: str
    comparisons: tuple[Comparison, ...]
    ratios: tuple[int, ...] = (2, 4, 8, 16, 32)
    level_counts: bool = False


SPARSE = Way()
CHANNELS = Way("channels", allocation="cost")
UNIFORM_CHANNELS = Way("channels", allocation="uniform")
FINDINGS = (
    Finding(
        "Magnitude beats random at high sparsity, and by little at low",
        "Blalock et al. 2020, section 7.2",
        "Magnitude (weights ranked globally, channels by cost) against random pruning, global and with the shares of "
        "each layer that magnitude takes. The claim is judged at 8x and beyond; the differences at 2x and 4x show how "
        "little there is at low.",
        (
            Comparison("weights: random, global", SPARSE, Way(criterion="random")),
            Comparison("weights: random, magnitude's shares", SPARSE, Way(criterion="random", allocation="magnitude")),
            Comparison("channels: random, global", CHANNELS, Way("channels", "random")),
            Comparison("channels: random, magnitude's shares", CHANNELS, Way("channels", "random", "magnitude")),
        ),
        (8, 16, 32),
    ),
    Finding(
        "Global beats uniform",
        "Blalock et al. 2020, section 7.2",
        "Magnitude over all layers against the same share of every layer. Units that are ranked over all layers by "
        "their scores alone may leave a layer with a single one. Two rankings weigh what a layer has left: by cost "
        "(importance lost per parameters and multiply-adds saved, the default for units) and LAMP. Compression counts "
        "parameters: at the same compression they keep more of the early layers, and save fewer multiply-adds, than "
        "equal shares do; summary.md has both.",
        (
            Comparison("weights", SPARSE, Way(allocation="uniform")),
            Comparison("channels by cost", CHANNELS, UNIFORM_CHANNELS),
            Comparison("channels by lamp", Way("channels", allocation="lamp"), UNIFORM_CHANNELS),
            Comparison("channels by score", Way("channels"), UNIFORM_CHANNELS),
        ),
    ),
    Finding(
        "Pruned and fine-tuned beats the same mask from scratch",
        "Blalock et al. 2020, section 3.2; Han et al. 2015, section 3.3",
        "The same mask (magnitude, global) with new random weights, trained for as many steps as dense training and "
        "fine-tuning together, on the dense training's schedule.",
        (Comparison("from scratch", SPARSE, Way(start="scratch")),),
    ),
    Finding(
        "Sparse beats a dense network with as many parameters",
        "Blalock et al. 2020, section 3.2; Zhu and Gupta 2017",
        "A dense network with the same depth and a smaller width, trained for as many steps as dense training and "
        "fine-tuning together. It has as many parameters as the sparse one (magnitude, global) keeps, or nearly so.",
        (Comparison("narrower and dense", SPARSE, Way("narrow", "", "", "scratch")),),
    ),
    Finding(
        "A mildly pruned network matches or beats the original",
        "Blalock et al. 2020, section 3.2; Han et al. 2015, table 1",
        "Magnitude, global, at 2x and fine-tuned, against the dense network as it was trained, and against the dense "
        "network trained on for as long without pruning. Level counts as a match.",
        (
            Comparison("the original", SPARSE, Way("none", "", "", "trained", target=1)),
            Comparison("the original trained on", SPARSE, Way("none", "", "", "finetune", target=1)),
        ),
        (2,),
        level_counts=True,
    ),
    Finding(
        "Keeping the weights beats new ones",
        "Han et al. 2015, section 3.3",
        "The same mask (magnitude, global) with new random weights, trained like the fine-tuned ones and as long.",
        (Comparison("re-initialised", SPARSE, Way(start="reinit")),),
    ),
    Finding(
        "L2 beats L1 after retraining",
        "Han et al. 2015, section 3.1 and figure 5",
        "The dense network trained with an L2 or L1 penalty, pruned (magnitude, global) and fine-tuned with the same.",
        (Comparison("L2 against L1, after fine-tuning", Way(penalty="l2"), Way(penalty="l1")),),
    ),
    Finding(
        "L1 beats L2 before retraining",
        "Han et al. 2015, section 3.1 and figure 5",
        "The same networks after pruning, before any fine-tuning, on the 5,000 images held out to pick states.",
        (Comparison("L1 against L2, pruned only", Way(penalty="l1"), Way(penalty="l2"), "validation_pruned"),),
    ),
)  # fmt: skip

SEEDS = 3
"""A comparison over fewer decides nothing."""

INTRODUCTION = """# What pruning does: the literature, measured

Written by `python benchmarks/prunebench.py findings` from `benchmarks/results/prunebench/*.csv`; do not edit.

Eight statements about pruning, each looked at with the same benchmark: every network is trained once for each data set
and seed, all methods start from that file, and all are fine-tuned for the same number of steps. Top-1 on the test set
in percent, mean ± standard deviation over the seeds, and the difference of the two sides, paired by seed. A difference
*holds* where every seed agrees with the claim and the mean is beyond the deviation. It is *reversed* where that is so
with the other sign, and *level* otherwise. Fewer than three seeds decide nothing. Verdicts in (parentheses) are shown
and do not count. With few seeds, short training and small networks this says what happens here, not what must happen
elsewhere.

"""


def budgets() -> str:
    """How long each network is trained, and how strong the penalties are."""
    lines = ["| network | dense training | fine-tuning | batch | L1 | L2 |", "|---|---|---|---|---|---|"]
    for name, network in NETWORKS.items():
        steps = f"{network.dense.steps} steps | {network.finetune.steps} steps | {network.dense.batch_size}"
        lines.append(f"| {name} | {steps} | {network.penalties['l1']:g} | {network.penalties['l2']:g} |")
    return "\n".join([*lines, ""])


@dataclass(frozen=True)
class Line:
    """One comparison at one ratio of one network and data set, by seed."""

    setting: Setting
    what: str
    label: str
    ratio: int
    better: list[float]
    worse: list[float]

    @property
    def differences(self) -> list[float]:
        """Paired by seed."""
        return [a - b for a, b in zip(self.better, self.worse, strict=True)]

    @property
    def verdict(self) -> str:
        """holds, reversed or level; too few seeds to say."""
        if len(self.better) < SEEDS:
            return "too few"
        mean, deviation = spread(self.differences)
        if abs(mean) <= deviation or len({np.sign(d) for d in self.differences}) > 1:
            return "level"
        return "holds" if mean > 0 else "reversed"


def write_findings(rows: Sequence[Row], path: Path) -> None:
    """Write docs/findings.md."""
    parts = [INTRODUCTION + budgets(), *(section(number, finding, rows) for number, finding in enumerate(FINDINGS, 1))]
    path.write_text("\n".join(parts))
    print(path.read_text())


def section(number: int, finding: Finding, rows: Sequence[Row]) -> str:
    """The table of a finding, and what it comes to."""
    lines = list(compare(finding, rows))
    table = [
        "| network, data | compared with | ratio | this | that | difference | seeds | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        verdict = line.verdict if line.ratio in finding.ratios else f"({line.verdict})"
        cells = [
            f"{line.setting.network}, {line.setting.data}", line.label, f"{line.ratio}x", text(line.better),
            text(line.worse), f"{spread(line.differences)[0]:+.2f} ± {spread(line.differences)[1]:.2f}",
            str(len(line.better)), verdict,
        ]  # fmt: skip
        table.append("| " + " | ".join(cells) + " |")
    head = [f"## {number}. {finding.title}", "", f"Source: {finding.source}. {finding.how}"]
    return "\n".join([*head, "", conclusion(finding, lines), "", *table, ""])


def compare(finding: Finding, rows: Sequence[Row]) -> Iterator[Line]:
    """All comparisons that there are results for."""
    measured = {row.key: row.measured for row in rows}
    settings = dict.fromkeys(Setting(row.key.network, row.key.data) for row in rows)
    shown = (2,) if finding.level_counts else (2, 4, 8, 16, 32)
    for setting in settings:
        for comparison in finding.comparisons:
            for ratio in shown:
                pairs = [
                    tuple(getattr(m, comparison.field) for m in pair)
                    for seed in sorted({key.seed for key in measured})
                    if (pair := _pair(measured, setting, seed, comparison, ratio))
                ]
                if pairs:
                    better, worse = map(list, zip(*pairs, strict=True))
                    yield Line(setting, _what(comparison.better), comparison.label, ratio, better, worse)


def _pair(
    measured: Mapping[tuple, Measured], setting: Setting, seed: int, comparison: Comparison, ratio: int
) -> tuple[Measured, Measured] | None:
    """Both sides of a comparison, if there are both."""
    keys = [(*setting, seed, *way[:5], way.target or ratio) for way in (comparison.better, comparison.worse)]
    return (measured[keys[0]], measured[keys[1]]) if all(key in measured for key in keys) else None


def conclusion(finding: Finding, lines: Sequence[Line]) -> str:
    """Reproduced or not, and by how much: one sentence for each kind of pruning."""
    kinds = list(dict.fromkeys(line.what for line in lines))
    if not kinds:
        return "**Not run.**"
    which = {kind: f" for {kind}" if len(kinds) > 1 else "" for kind in kinds}
    return "\n\n".join(_sentence(finding, [x for x in lines if x.what == kind], which[kind]) for kind in kinds)


def _what(way: Way) -> str:
    ways = {"": "", "global": " by score" if way.structure == "channels" else ""}
    return way.structure + ways.get(way.allocation, f" by {way.allocation}")


def _sentence(finding: Finding, lines: Sequence[Line], which: str) -> str:
    lines = [line for line in lines if len(line.better) >= SEEDS]
    counted = [line for line in lines if line.ratio in finding.ratios]
    if not counted:
        return f"**Not yet known{which}**."
    verdicts = Counter(line.verdict for line in counted)
    good = verdicts["holds"] + (verdicts["level"] if finding.level_counts else 0)
    if good == len(counted):
        word = "Reproduced"
    elif good > len(counted) / 2 and not verdicts["reversed"]:
        word = "Mostly reproduced"
    elif good >= max(1, verdicts["reversed"]):
        word = "Partly reproduced"
    else:
        word = "Not reproduced"
    numbers = ", ".join(f"{verdicts[v]} of {len(counted)} {v}" for v in ("holds", "level", "reversed"))
    sizes = "; ".join(
        f"{ratio}x {np.median([spread(line.differences)[0] for line in lines if line.ratio == ratio]):+.2f}"
        for ratio in sorted({line.ratio for line in lines})
    )
    return f"**{word}{which}**: {numbers}. Median difference in points: {sizes}."
