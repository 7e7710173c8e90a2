"""Single weights and 2:4 without labels: a ResNet on Fashion-MNIST, BatchNorm folded and not, and MiniLM on STS.

The ResNet is that of `recovery_mnist.py`, trained on first use; its two exports are the same network, and what is left
of both is test accuracy in percent with 1,024 unlabelled training images. MiniLM gets 512 unlabelled sentences of
the training set; its score is Spearman's rank correlation between the cosine of two embeddings and the score that
people gave, on the 1,379 pairs of the test set. CPU seconds are those of the whole run.

    python benchmarks/single_weights.py --data-root DATA --minilm minilm_l6.onnx --draws 0 1 2

Results are benchmarks/results/single_weights.json: what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune import model_io
from onnxprune.passes import Normalise
from onnxprune.pipeline.run import prune
from onnxprune.recovery.alps import Spectrum, alps, keep_largest
from onnxprune.recovery.quadratic import Quadratic, fit_within
from onnxprune.recovery.sparsegpt import choose_support, damped_hessian
from onnxprune.recovery.swaps import refine
from onnxprune.runtime import make_session
from onnxprune.scoring import Evidence
from onnxprune.selection.weights import least_of_each
from onnxprune.structure.analysis import analyse

RESULTS = Path(__file__).parent / "results" / "single_weights.json"
IMAGES, SENTENCES = 1_024, 512

_METHODS = ("no", "least-squares", "obc", "sparsegpt", "sparseswaps")
_HALF, _TWO_OF_FOUR = {"structure": "weights", "sparsity": 0.5}, {"structure": "2:4"}

CASES: dict[str, tuple[Mapping[str, Any], ...]] = {
    "resnet-fashion": (
        *({"structure": "weights", "sparsity": sparsity} for sparsity in (0.5, 0.8, 0.9)),
        *({"structure": "weights", "sparsity": 0.9, "iterations": steps} for steps in (2, 5, 10)),
        *({"structure": "weights", "sparsity": s, "recover": method} for s in (0.8, 0.9) for method in _METHODS),
        *({"structure": "weights", "sparsity": 0.9, "allocation": way} for way in ("global", "uniform", "erk")),
    ),
    "minilm": (
        _HALF, _TWO_OF_FOUR,
        *({**_HALF, "recover": method} for method in _METHODS),
        *({**_HALF, "criterion": "wanda", "recover": method} for method in ("no", "alps")),
        *({**_TWO_OF_FOUR, "criterion": "wanda", "recover": method} for method in ("no", "sparsegpt", "sparseswaps")),
        {"structure": "weights", "sparsity": 0.7},
    ),
}  # fmt: skip
"""What is run of each network: settings beside the calibration data."""


# --- the networks


class Images:
    """The two exports of the ResNet."""

    def __init__(self, root: Path, work: Path) -> None:
        """Train them where they are not in the folder yet."""
        from lenets import load_sets
        from recovery_mnist import NETWORKS, trained

        sets = load_sets(root / NETWORKS["resnet-fashion"].data)
        folded, kept = trained("resnet-fashion", 0, sets, work)
        self.paths = {"resnet-fashion folded": folded, "resnet-fashion with BatchNorm": kept}
        self._source, self._test = sets.train.source, sets.test

    def calibration(self, model: ir.Model, draw: int) -> dict[str, npt.NDArray[Any]]:
        """Images of the training set."""
        chosen = np.random.default_rng(draw).permutation(self._source.count)[:IMAGES]
        return {str(model.graph.inputs[0].name): self._source.rows(chosen).inputs[0]}  # type: ignore[attr-defined]

    def score(self, model: ir.Model) -> float:
        """Accuracy in percent."""
        from recovery_mnist import test_error

        return 100 - test_error(model, self._test)


class Sentences:
    """MiniLM."""

    def __init__(self, root: Path, path: Path) -> None:
        """Take the folder with stsb/ and the model's file."""
        self.paths = {"minilm": path}
        self._test = np.load(root / "stsb" / "stsb_test.npz")
        self._train = np.load(root / "stsb" / "stsb_calibration.npz")

    def calibration(self, model: ir.Model, draw: int) -> dict[str, npt.NDArray[Any]]:
        """Sentences of the training set."""
        count = len(self._train["input_ids"])
        chosen = np.sort(np.random.default_rng(draw).permutation(count)[:SENTENCES])
        return tokens(self._train["input_ids"][chosen], self._train["attention_mask"][chosen])

    def score(self, model: ir.Model) -> float:
        """Spearman's rank correlation."""
        session = make_session(model)
        first, second = (embeddings(session, self._test[f"ids{i}"], self._test[f"mask{i}"]) for i in (1, 2))
        cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
        return float(np.corrcoef(ranks(cosine), ranks(self._test["score"]))[0, 1])


def tokens(ids: npt.NDArray[Any], mask: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.int64]]:
    """The inputs of MiniLM."""
    ids, mask = ids.astype(np.int64), mask.astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def embeddings(session: Any, ids: npt.NDArray[Any], mask: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """One row a sentence."""
    batches = []
    for start in range(0, len(ids), 64):
        part = slice(start, start + 64)
        length = int(mask[part].sum(1).max())  # what is padded in all of a batch changes nothing
        batches.append(session.run(None, tokens(ids[part, :length], mask[part, :length]))[0])
    return np.concatenate(batches)


def ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Ranks; those that are equal share their mean."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[which])


# --- the runs


def entries_of(
    name: str, network: Images | Sentences, draws: Sequence[int], done: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield what is missing of the results, measured."""
    models = {label: model_io.load_any(path) for label, path in network.paths.items()}
    for label, model in models.items():
        if not any(e["network"] == label and e["case"] == "dense" for e in done):
            yield {"network": label, "case": "dense", "draw": 0, "score": round(network.score(model), 4)}
    for settings, draw, label in itertools.product(CASES[name], draws, models):
        case = ", ".join(f"{key} {value}" for key, value in settings.items())
        if any((e["network"], e["case"], e["draw"]) == (label, case, draw) for e in done):
            continue
        calibration = network.calibration(models[label], draw)
        started = time.process_time()
        result = prune(network.paths[label], calibration=calibration, verification=False, **settings)
        seconds = round(time.process_time() - started, 1)
        score = round(network.score(result.model), 4)
        entry = {"network": label, "case": case, "draw": draw, "score": score, "seconds": seconds}
        yield entry | {"sparsity": round(result.sparsity, 4)}


def layer_errors(
    path: Path, inputs: Mapping[str, npt.NDArray[Any]], sparsity: float, done: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield each layer's relative squared error by SparseGPT, by ALPS, and by Wanda's mask before and after swaps.

    All see the same Gram matrix of the dense network's activations.
    """
    model = model_io.load_any(path)
    Normalise()(model)
    evidence = Evidence(analyse(model), inputs)
    for name, linear in evidence.layers.items():
        if name in done:
            continue
        moments = evidence.moments(name)
        weight, q = linear.matrix(), Quadratic.of(moments, linear.bias(), with_bias=linear.shift is not None)
        full, gone = q.scaled(weight), round(sparsity * weight.size)
        swept, _ = choose_support(weight, damped_hessian(moments, centred=linear.shift is not None), gone)
        fitted, support = alps(full, Spectrum.of(q.gram), keep_largest(weight.size - gone))
        fitted = fit_within(Quadratic(q.gram, full @ q.gram, q.scale), fitted, support, 1e-4)
        mask = least_of_each(np.square(full[0]).astype(np.float32), gone, 0)[None] if linear.groups == 1 else support
        swapped = refine(full, q.gram, mask)
        weights = {"sparsegpt": q.scaled(swept), "alps": fitted}
        weights |= {"wanda": np.where(mask, full, 0.0), "swapped": np.where(swapped, full, 0.0)}
        errors = {way: round(relative_error(q.gram, full, w), 6) for way, w in weights.items()}
        yield {"network": path.stem, "case": f"layer at {sparsity:.0%}", "layer": name, "draw": 0, **errors}


def relative_error(gram: npt.NDArray[Any], full: npt.NDArray[Any], weight: npt.NDArray[Any]) -> float:
    """The squared error of a layer's outputs with other weights, over the squares of its outputs."""
    gap, size = (float(np.einsum("gok,gok->", x @ gram, x)) for x in (weight - full, full))
    return gap / size


def read() -> list[dict[str, Any]]:
    """All entries so far."""
    entries: list[dict[str, Any]] = json.loads(RESULTS.read_text())["entries"] if RESULTS.exists() else []
    return entries


def write(entries: Sequence[Mapping[str, Any]]) -> None:
    """Write all entries, whole or not at all."""
    beside = RESULTS.with_suffix(".partial")
    lines = ",\n".join(" " + json.dumps(entry) for entry in entries)
    beside.write_text(f'{{"images": {IMAGES}, "sentences": {SENTENCES}, "entries": [\n{lines}\n]}}\n')
    beside.replace(RESULTS)


def summary(entries: Sequence[Mapping[str, Any]]) -> str:
    """Means and deviations over draws, one line a case."""
    entries = sorted(entries, key=lambda e: str(e["network"]))
    lines = []
    layers = [e for e in entries if "layer" in e]
    for title, a, b in (("ALPS under SparseGPT", "alps", "sparsegpt"), ("swaps no worse", "swapped", "wanda")):
        lines.append(f"{title}: {sum(e[a] <= e[b] for e in layers)} of {len(layers)} layers")
    entries = [e for e in entries if "layer" not in e]
    for key in dict.fromkeys((e["network"], e["case"]) for e in entries):
        group = [e for e in entries if (e["network"], e["case"]) == key]
        scores = [e["score"] for e in group]
        seconds = np.mean([e.get("seconds", 0.0) for e in group])
        lines.append(
            f"{key[0]:30} {key[1]:60} {np.mean(scores):8.4f} +- {np.std(scores):.4f} {seconds:6.1f} s  n={len(group)}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("ONNXPRUNE_DATA")
    root = Path(default) if default else None
    parser.add_argument("--data-root", type=Path, default=root, help="holds fashion_mnist/ and stsb/")
    parser.add_argument("--minilm", type=Path, help="minilm_l6.onnx; left out without it")
    parser.add_argument("--network", choices=["all", *CASES], default="all")
    parser.add_argument("--work", type=Path, default=Path("build/recovery_mnist"), help="folder for the trained models")
    parser.add_argument("--cases", type=int, help="only the first so many of a network, which are those by default")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    if args.data_root is None:
        parser.error("say where the data are: --data-root or ONNXPRUNE_DATA")
    networks: dict[str, Images | Sentences] = {}
    if args.network in ("all", "resnet-fashion"):
        networks["resnet-fashion"] = Images(args.data_root, args.work)
    if args.network in ("all", "minilm") and args.minilm is not None:
        networks["minilm"] = Sentences(args.data_root, args.minilm)
    for name, network in networks.items():
        CASES[name] = CASES[name][: args.cases]
        entries = read()
        for entry in entries_of(name, network, args.draws, entries):
            print(json.dumps(entry), flush=True)
            write([*read(), entry])
        if isinstance(network, Sentences):
            inputs = network.calibration(model_io.load_any(args.minilm), 0)
            measured = {e["layer"] for e in entries if "layer" in e}
            for entry in layer_errors(args.minilm, inputs, 0.7, measured):
                write([*read(), entry])
    print(summary(read()))


if __name__ == "__main__":
    main()
