"""How much of an architecture coupling lets go: every group cut by half, ours against DepGraph (Torch-Pruning).

    pip install torch torchvision torch-pruning==1.6.1
    python benchmarks/depgraph.py [--only resnet50 ...] [--exporter legacy]  ->  benchmarks/results/depgraph.json

Each torchvision architecture is exported by both exporters; of every group, mixed axes included (what
`--structure channels --allow-inexact` may touch), half of the units go, and no axis loses more than half of its
indices. Figures are the parameters removed, in percent of all. Every pruned graph is compared with its masked twin in
ONNX Runtime. Torch-Pruning runs on the same network at pruning ratio 0.5 with the classifier left alone.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import io
import json
import logging
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxprune.passes.normalise import Normalise
from onnxprune.runtime.comparison import compare
from onnxprune.runtime.inputs import random_inputs
from onnxprune.structure.analysis import analyse
from onnxprune.structure.axes import parts
from onnxprune.structure.masking import zero_units
from onnxprune.structure.rewrite import remove
from onnxprune.structure.structure import Structure

# What Torch-Pruning 1.6.1 removed at ratio 0.5, as first published with this comparison; None where it fails.
PUBLISHED: dict[str, float | None] = {
    "resnet50": 72.9,
    "mobilenet_v3_small": 64.2,
    "efficientnet_b0": 67.8,
    "densenet121": 71.5,
    "googlenet": 71.0,
    "regnet_y_400mf": 72.3,
    "convnext_tiny": 74.0,
    "shufflenet_v2_x1_0": None,
    "vit_b_16": None,
    "swin_t": None,
}
MEMORY = 9 << 30  # bytes that Torch-Pruning may take
RESULTS = Path(__file__).resolve().parent / "results" / "depgraph.json"


def architecture(name: str) -> torch.nn.Module:
    """A torchvision network with random weights, in eval mode."""
    import torchvision

    torch.manual_seed(0)
    extra: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **extra).eval()


def export(name: str, exporter: str, folder: Path) -> Path:
    """Export by `legacy` (opset 17) or `dynamo` (opset 18) with a dynamic batch."""
    path = folder / f"{name}-{exporter}.onnx"
    model, image = architecture(name), torch.zeros(2, 3, 224, 224)
    common: dict[str, Any] = {"input_names": ["image"], "output_names": ["scores"]}
    if exporter == "legacy":
        torch.onnx.export(model, (image,), path, dynamo=False, opset_version=17, dynamic_axes={"image": [0]}, **common)
    else:
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (image,), path, dynamo=True, opset_version=18, dynamic_shapes=shapes, **common)
    return path


def halves(structure: Structure) -> npt.NDArray[np.bool_]:
    """Removal flags by atom: half of each group, as long as no axis keeps less than half of its indices.

    As in Torch-Pruning, of an odd number the smaller half stays. Of channels that are groups x members only one can be
    halved: what divides exactly is tried first, then what ties fewer
    weights together (members before groups).
    """
    terms, groups = structure.terms, structure.groups
    removed = np.zeros(terms.count, bool)
    members: list[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    axes_of: dict[int, list[int]] = defaultdict(list)
    for ids in {id(p): p for axes in structure.axes.values() for axis in axes for p in parts(axis)}.values():
        rows, atoms = terms.members(ids)
        for atom in np.unique(atoms).tolist():
            axes_of[atom].append(len(members))
        members.append((len(ids), rows, atoms))
    weight = {group: sum(math.prod(structure.facts.shape(s.value) or ()) for s in group.sites) for group in groups}
    for group in sorted(groups, key=lambda group: (len(group) % 2, weight[group])):
        if len(group) < 2:
            continue
        chosen = group.atoms[len(group) // 2 :]
        removed[chosen] = True
        touched = {axis for atom in chosen.tolist() for axis in axes_of[atom]}
        if any(len(np.unique(rows[removed[atoms]])) > -(-n // 2) for n, rows, atoms in (members[a] for a in touched)):
            removed[chosen] = False
    return removed


def prune(path: Path) -> dict[str, Any]:
    """Cut every group of an ONNX file by half; return what that did."""
    model, twin = _load(path), _load(path)
    start = time.process_time()
    structure = analyse(model)
    seconds = time.process_time() - start
    share, weights = structure.prunable_share(exact=False)
    before = _parameters(model)
    removed = halves(structure)
    remove(structure, removed)
    RemoveUnusedNodesPass()(model)
    zero_units(analyse(twin), removed)
    agreement = compare(twin, model, random_inputs(twin, seed=1), optimize="off")
    return {
        "removed_percent": round(100 * (1 - _parameters(model) / before), 1),
        "prunable_percent": round(100 * share / weights, 1),
        "difference": float(agreement.max_rel),
        "analysis_seconds": round(seconds, 2),
    }


def depgraph(name: str) -> float | str:
    """Parameters that Torch-Pruning removes at ratio 0.5, in percent, or why it does not. In a process of its own."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_depgraph, name).result()


def _depgraph(name: str) -> float | str:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _library = _torchvision_without_operators()
    import torch_pruning as tp

    model, image = architecture(name), torch.zeros(1, 3, 224, 224)
    before = sum(p.numel() for p in model.parameters())
    heads = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1000]
    try:
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        pruner = tp.pruner.BasePruner(model, image, importance, pruning_ratio=0.5, ignored_layers=heads)
        pruner.step()
        model(image)
    except Exception as failure:  # whatever it raises is the result
        words = str(failure).splitlines() or [f"more than {MEMORY >> 30} GiB"]
        return f"fails: {type(failure).__name__}: {words[0][:80]}"
    return round(100 * (1 - sum(p.numel() for p in model.parameters()) / before), 1)


def _load(path: Path) -> ir.Model:
    model = ir.load(path)
    Normalise()(model)
    return model


def _parameters(model: ir.Model) -> int:
    """Count what PyTorch calls parameters: running means and variances are none."""
    values = [v for v in model.graph.initializers.values() if not _is_statistic(v)]
    tensors = [v.const_value for v in values if v.const_value is not None and v.const_value.dtype.is_floating_point()]
    return sum(math.prod(t.shape.numpy()) for t in tensors)


def _is_statistic(value: ir.Value) -> bool:
    """Whether every reader, behind Identity too, takes a constant for a running mean or variance."""
    readers = list(value.uses())
    return bool(readers) and all(
        _is_statistic(node.outputs[0]) if node.op_type == "Identity" else node.op_type == "BatchNormalization" and i > 2
        for node, i in readers
    )


def _torchvision_without_operators() -> torch.library.Library | None:
    """torchvision from PyPI is compiled for CUDA: beside a CPU build of torch it does not load its own operators.

    The classifiers need none of them, but importing registers shapes for two, which must exist.
    """
    library = torch.library.Library("torchvision", "DEF")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--exporter", nargs="*", default=["legacy", "dynamo"], choices=["legacy", "dynamo"])
    arguments = parser.parse_args()
    keep_alive = _torchvision_without_operators()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            row: dict[str, Any] = results.setdefault(name, {})
            row["published_depgraph_percent"] = PUBLISHED[name]
            with _quiet():
                row["measured_depgraph_percent"] = depgraph(name)
            for exporter in arguments.exporter:
                with _quiet():
                    path = export(name, exporter, Path(folder))
                row[exporter] = prune(path)
            print(name, json.dumps(row), flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + os.linesep)
    del keep_alive


if __name__ == "__main__":
    main()
