"""The pairs of model and recipe of same_bytes.py: plain data.

A model is named by where it comes from: ``models/`` (this repository), ``zoo/`` (the folder of shared models) or
``made/`` (an architecture of tests/zoo.py by one of its exporters). A recipe is the keyword arguments of
`onnxprune.prune`; ``calibration``, ``data`` and ``eval_data`` are True, which stands for the samples that belong to the
model. A pair may also be command lines, with ``{model}``, ``{samples}``, ``{train}``, ``{out}`` and ``{record}`` filled
in. The last one writes ``{out}``. `REASONS` says why a commit was meant to change what some pairs write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pair:
    """A model and what is done to it: settings of `onnxprune.prune`, or command lines."""

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    commands: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the pair is called in the results, such as ``models/digits_mlp sparsity=0.5``."""
        if self.commands:
            return f"{self.model} $ {' && '.join(self.commands)}"
        return " ".join([self.model, *(f"{name}={_plain(value)}" for name, value in self.settings.items())])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}:{_plain(entry)}" for name, entry in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


MLP, RESNET, TRANSFORMER = "models/digits_mlp", "models/digits_resnet", "models/digits_transformer"
DIGITS = (MLP, RESNET, TRANSFORMER)
ZOO = tuple(
    f"zoo/{name}"
    for name in (
        "basic_pitch_nmp", "fastestdet", "magika_v1", "mjp_go1_policy", "mnist_cntk", "own_resnet20_cifar_ts_bn_op17",
        "shufflenetv2_12_int8", "silero_vad_16k_op15", "ultraface_slim320_simplified", "vittrack",
        "yolox_nano_opencvzoo",
    )
)  # fmt: skip
MADE = tuple(
    f"made/{name}-legacy"
    for name in (
        "resnet_basic", "resnet_bottleneck", "resnet_batchnorm", "resnext", "mobilenet_v2", "mobilenet_v3",
        "efficientnet", "densenet", "inception", "shufflenet_v2", "convnext", "vgg", "unet", "yolo", "lstm",
        "gru_bidirectional", "rnn", "vit", "vit_mha", "swin", "bert", "gpt", "llama", "gqa_broadcast",
        "mixture_of_experts", "control_flow",
    )
)  # fmt: skip
DYNAMO = ("made/resnet_basic-dynamo", "made/lstm-dynamo", "made/vit-dynamo", "made/llama-dynamo")

NO_DATA = ("l1", "lamp", "random", "synflow")
WITH_DATA = ("fisher", "grasp", "obc", "obd", "snip", "taylor", "wanda")
UNITS_NO_DATA = ("fpgm",)
UNITS_WITH_DATA = ("activation", "apoz", "taylor-unit", "variance", "gates")
BLOCKS_WITH_DATA = ("block-influence", "block-output", "taylor", "wanda")


REASONS = {
    "62fa2d75e7eb": (
        "single weights, blocks and mixes take the shares of LAMP by default, each criterion compares in its "
        "published group, and ranks see folded and unfolded BatchNormalization alike"
    ),
    "65a24116607e": "recovery counts a bias that lies behind a layer once",
    "7f9970c6bfcb": "single weights with calibration data are recovered by ALPS, and by one factorisation a layer",
    "eec6e4bba3c4": "what is tried on single weights is judged on a sample of the outputs",
    "1c0fd7ab1a4a": (
        "units with calibration data go by structured OBS and measured effect, and are recovered in one streaming pass"
    ),
    "b2893784c50e": (
        "a target that makes up for a shortcut is used where the shortcut is at hand, and a result short of "
        "its target is tried again"
    ),
    "d4d977f795ff": "a short result is tried again only where effects are measured",
    "6e9c97cbb5d7": "a budget that must not be exceeded is used to within half a percent",
    "201d3c1f65f8": "of units that cost nothing to remove, those of the group that is cut least go first",
    "46bd4b798321": "an If whose condition follows from shapes becomes the branch that runs",
    "f6f783fe378f": "a step of a schedule may take a cut that is larger than the step",
    "2d4a6fa81d84": "constants pass through HardSwish, Mish and Gelu, so that more dead units are found",
    "feac2138d3db": "ALPS adds in another order, and looks for a ridge only up to where it gets worse",
    "095785bd03c5": "the types of initializers are not written a second time, into value_info",
    "7d30ee210928": (
        "the cut is the same; numbers that come from shapes keep what they were before it where a target of Reshape, "
        "Expand or Tile is computed from them, so that heads merged with the batch are found"
    ),
    "d6a4f566992a": "the units of products keep multiples of 8 where there are 64 and more",
    "d8c738b8df5f": "SparseGPT and OBC choose in several blocks also where a layer has under 128 inputs",
    "a8d1d023f493": "bytes before are those of the user's file, not of the file written anew",
    "47af1ba64ddf": "queries are fitted to what the keys that are left can tell of positions of heads that went",
    "25a298b665f8": "shapes without gaps are not measured; inside branches that was a fault, and is taken back since",
    "3ac8d19c74f3": "a model with branches is run to learn which sizes it takes",
    "ae4600e95742": (
        "least squares of units holds one batch in eight back for the whole pass, single weights are made from seven "
        "eighths and judged on one, and a second pass of OBC and its like ends as the first"
    ),
    "77999accc438": "Gram matrices of layers that read the same rows are one, whose sums are added in another order",
    "f7284620bf96": "the last group under a budget may end at a multiple of 4, and the search ends more finely",
    "816d7daf36c3": "training lays convolutions out with their channels last, which adds sums in another order",
}
"""Why the outputs of some pairs changed at a commit: same_bytes_causes.json says which pairs and commits these are."""


def _every_model() -> Iterator[Pair]:
    """Magnitude on all models: weights and whole units."""
    for model in (*DIGITS, *ZOO, *MADE, *DYNAMO):
        yield Pair(model, {"sparsity": 0.5})
        yield Pair(model, {"structure": "channels", "sparsity": 0.3})
    yield Pair("zoo/dtln_1", {"sparsity": 0.5})


def _granularities() -> Iterator[Pair]:
    for model in (MLP, RESNET, "zoo/magika_v1", "made/vit-dynamo", "made/lstm-legacy"):
        for structure in ("2:4", "1:4"):
            yield Pair(model, {"structure": structure})
        for structure in ("block:1x4", "block:4x1", "block:4x4", "channels+weights", "channels+block:1x4"):
            yield Pair(model, {"structure": structure, "sparsity": 0.5})
        yield Pair(model, {"structure": "channels+2:4", "sparsity": 0.7})
    yield Pair(RESNET, {"structure": "channels+weights", "sparsity": 0.6, "unit_share": 0.3})
    for model in (RESNET, "made/resnet_bottleneck-legacy", "made/vit-legacy", "made/swin-legacy", "made/bert-legacy"):
        yield Pair(model, {"structure": "blocks", "sparsity": 0.3})
    for model, kinds in (
        (TRANSFORMER, "heads"), (TRANSFORMER, "head-size"), (TRANSFORMER, "neurons"), ("made/vit_mha-legacy", "heads"),
        ("made/vit-dynamo", "head-size"), ("made/bert-legacy", "neurons"), ("made/gpt-legacy", "heads"),
        ("made/llama-legacy", "heads"), ("made/llama-dynamo", "neurons"), ("made/gqa_broadcast-legacy", "heads"),
        ("made/mixture_of_experts-legacy", "neurons"),
        ("made/lstm-legacy", "hidden"), ("made/gru_bidirectional-legacy", "hidden"), ("made/rnn-legacy", "hidden"),
        ("zoo/silero_vad_16k_op15", "channels"), ("made/resnext-legacy", "channels"),
    ):  # fmt: skip
        yield Pair(model, {"structure": "channels", "sparsity": 0.2, "kinds": (kinds,)})


def _limits() -> Iterator[Pair]:
    """What may go, and how much of it."""
    units = {"structure": "channels", "sparsity": 0.3}
    for model in (TRANSFORMER, "made/convnext-legacy", "made/swin-legacy", "made/bert-legacy"):
        yield Pair(model, {**units, "allow_inexact": True})
    for model in (RESNET, "zoo/mnist_cntk", "made/mobilenet_v3-legacy"):
        yield Pair(model, {**units, "round_to": "none"})
        yield Pair(model, {"sparsity": 0.95, "remove_dead": True})
    for settings in ({"round_to": 12}, {"floor": 24, "sparsity": 0.7}, {"ends": "keep", "sparsity": 0.7},
                     {"exclude": ("blocks.2*",)}, {"only": ("blocks.2*",)}):  # fmt: skip
        yield Pair(RESNET, {**units, **settings})
    for ends in ("keep", "prune"):
        yield Pair("zoo/own_resnet20_cifar_ts_bn_op17", {"sparsity": 0.8, "ends": ends})
    experts = {"kinds": ("experts",), "allow_inexact": True}
    yield Pair("made/mixture_of_experts-legacy", {**units, **experts})
    yield Pair(MLP, {"quality": 1.0})
    yield Pair(RESNET, {"quality": 0.8, "remove_dead": True})
    yield Pair(MLP, {"structure": "2:4", "remove_dead": True})


def _criteria() -> Iterator[Pair]:
    """Every criterion for all that it scores; those that look at data with recovery, as by default."""
    for criterion in NO_DATA:
        yield Pair(TRANSFORMER, {"criterion": criterion, "sparsity": 0.5})
        yield Pair(RESNET, {"structure": "channels", "criterion": criterion, "sparsity": 0.3})
    for criterion in WITH_DATA:
        for model, structure in ((MLP, "weights"), (RESNET, "channels"), (TRANSFORMER, "channels"), (RESNET, "2:4")):
            if structure != "2:4" or criterion in ("obc", "taylor", "wanda"):
                yield Pair(model, _looking(criterion, structure))
    for criterion in UNITS_NO_DATA:
        for model in (*DIGITS, "zoo/magika_v1", "made/bert-legacy", "made/inception-legacy"):
            yield Pair(model, {"structure": "channels", "criterion": criterion, "sparsity": 0.3})
    for criterion in UNITS_WITH_DATA:
        for model in (RESNET, TRANSFORMER):
            yield Pair(model, _looking(criterion, "channels"))
    for model in (RESNET, "zoo/own_resnet20_cifar_ts_bn_op17"):
        yield Pair(model, {"structure": "channels", "criterion": "bn-scale", "sparsity": 0.3})
    for criterion in BLOCKS_WITH_DATA:
        yield Pair(TRANSFORMER, _looking(criterion, "blocks"))
    yield Pair("zoo/own_resnet20_cifar_ts_bn_op17", _looking("activation", "channels"))
    yield Pair("made/unet-legacy", _looking("wanda", "weights"))
    yield Pair("made/gru_bidirectional-legacy", _looking("obc", "weights"))


def _looking(criterion: str, structure: str) -> dict[str, Any]:
    sparsity = {} if structure == "2:4" else {"sparsity": 0.3}
    amount = {"calibration": True, "calibration_samples": 128}
    return {"structure": structure, "criterion": criterion, **sparsity, **amount}


def _allocations() -> Iterator[Pair]:
    for allocation in ("global", "uniform", "lamp", "erk"):
        yield Pair(RESNET, {"sparsity": 0.7, "allocation": allocation})
    for allocation in ("global", "uniform", "lamp", "cost"):
        for model in (TRANSFORMER, "made/mobilenet_v2-legacy"):
            yield Pair(model, {"structure": "channels", "sparsity": 0.4, "allocation": allocation})
    yield Pair(RESNET, {"structure": "block:1x4", "sparsity": 0.6, "allocation": "uniform"})
    for model, structure in ((MLP, "weights"), (RESNET, "channels")):
        scan = {"allocation": "sensitivity", "calibration": True, "calibration_samples": 64}
        yield Pair(model, {"structure": structure, "sparsity": 0.5, **scan})


def _recovery() -> Iterator[Pair]:
    samples = {"calibration": True, "calibration_samples": 256}
    for method in ("no", "least-squares", "bias", "moments", "merge", "expected-bias", "obc", "least-squares,bias"):
        for model, structure in ((RESNET, "channels"), (MLP, "weights"), (TRANSFORMER, "channels")):
            if structure == "weights" or method != "obc":
                settings = {"structure": structure, "sparsity": 0.5, "recover": method}
                yield Pair(model, {**settings, **samples})
    yield Pair(RESNET, {"structure": "channels", "sparsity": 0.5, "recover": "batchnorm", **samples})
    for method in ("merge", "expected-bias", "merge,expected-bias"):
        yield Pair(RESNET, {"structure": "channels", "sparsity": 0.4, "recover": method})
    yield Pair("zoo/own_resnet20_cifar_ts_bn_op17", {"sparsity": 0.4, **samples})
    yield Pair("made/vgg-legacy", {"structure": "channels", "sparsity": 0.4, **samples})
    yield Pair("made/vit-legacy", {"structure": "2:4", **samples})


def _files() -> Iterator[Pair]:
    """Packing and quantisation."""
    for pack in ("auto", "smallest", "gap8", "gap4", "bitmask"):
        for model in (MLP, "made/llama-dynamo"):
            yield Pair(model, {"sparsity": 0.9, "pack": pack})
    yield Pair(RESNET, {"sparsity": 0.9, "pack": "smallest", "remove_dead": True})
    for values in ("fp16", "int8", "codebook16", "codebook256"):
        yield Pair(RESNET, {"sparsity": 0.9, "pack": "gap8", "pack_values": values})
    yield Pair(TRANSFORMER, {"sparsity": 0.9, "pack": "smallest", "pack_values": "int8"})
    for model in (MLP, RESNET):
        yield Pair(model, {"sparsity": 0.8, "sparse_initializers": True})
    for model in DIGITS:
        yield Pair(model, {"sparsity": 0.5, "quantize": "int8", "calibration": True, "recover": "no"})
    for model, structure in ((MLP, "weights"), (TRANSFORMER, "channels"), ("made/lstm-legacy", "weights")):
        for quantize in ("int8-dynamic", "fp16"):
            yield Pair(model, {"structure": structure, "sparsity": 0.5, "quantize": quantize})
    yield Pair(RESNET, {"structure": "channels", "sparsity": 0.5, "quantize": "int8", "eval_data": True})
    yield Pair(RESNET, {"structure": "channels", "sparsity": 0.5, "quantize": "fp16"})


def _steps() -> Iterator[Pair]:
    """Schedules and targets."""
    for schedule in ("one-shot", "linear", "exponential", "cubic"):
        yield Pair(RESNET, {"structure": "channels", "sparsity": 0.5, "iterations": 3, "schedule": schedule})
    yield Pair(MLP, {"sparsity": 0.9, "iterations": 3, "initial_sparsity": 0.4, "schedule": "cubic"})
    yield Pair(MLP, {**_looking("taylor", "weights"), "iterations": 2})
    yield Pair(RESNET, {**_looking("activation", "channels"), "iterations": 2})
    for seed in (0, 7):
        yield Pair(MLP, {"structure": "channels", "criterion": "random", "sparsity": 0.5, "seed": seed})
    for model in (RESNET, "made/mobilenet_v2-legacy", "zoo/mnist_cntk"):
        yield Pair(model, {"structure": "channels", "target_macs": 0.6})
        yield Pair(model, {"structure": "channels", "target_size": 0.75})
    yield Pair(MLP, {"target_size": 0.3, "pack": "gap8"})
    yield Pair(RESNET, {"structure": "channels", "max_drop": 0.02, "eval_data": True})


def _retraining() -> Iterator[Pair]:
    def trained(model: str, train: dict[str, Any], **settings: Any) -> Pair:
        return Pair(model, {**settings, "retrain": {"device": "cpu", **train}, "data": True})

    epoch, units = {"epochs": 1, "seed": 3}, {"structure": "channels", "sparsity": 0.5}
    yield trained(MLP, epoch, sparsity=0.9)
    yield trained(RESNET, {"steps": 8}, **units)
    yield trained(TRANSFORMER, {"steps": 8, "optimizer": "adamw", "weight_decay": 0.01, "warmup": 0.2}, **units)
    yield trained(MLP, {**epoch, "optimizer": "sgd", "learning_rate": 0.05, "schedule": "step"}, sparsity=0.9)
    yield trained(MLP, {**epoch, "distill": 0.5, "dropout": 0.3, "l1": 1e-5, "clip": 1.0}, sparsity=0.9)
    yield trained(MLP, {"epochs": 2, "ema": 0.9, "freeze": ("5.*",)}, sparsity=0.5)
    for survivors in ("continue", "lr-rewind", "reinit"):
        yield trained(MLP, epoch, sparsity=0.9, iterations=2, survivors=survivors)
    yield trained(MLP, {"epochs": 2}, sparsity=0.9, prune_every=10, schedule="cubic")
    yield trained(MLP, epoch, **units, shrink="growing-l2", shrink_epochs=1)
    yield trained(MLP, epoch, **units, shrink="group-lasso", shrink_epochs=1)
    yield trained(RESNET, {"steps": 4}, sparsity=0.8, alternate=True, iterations=2)
    yield trained(MLP, epoch, structure="2:4", criterion="taylor")
    yield trained(MLP, epoch, sparsity=0.9, quantize="int8", eval_data=True, remove_dead=True)
    yield trained(RESNET, {"steps": 6, "batch_norm": "freeze"}, **units, retrain_last={"steps": 4, "device": "cpu"})


def _command_lines() -> Iterator[Pair]:
    out = "-o {out} --record {record}"
    yield Pair(MLP, commands=(f"prune {{model}} -s 0.5 {out}",))
    yield Pair(RESNET, commands=(f"prune {{model}} -s 0.5 --structure channels {out}",))
    yield Pair(MLP, commands=(f"prune {{model}} --preset smallest {out}",))
    yield Pair(
        RESNET, commands=(f"prune {{model}} --structure joint --target-macs 0.5 --calibration {{samples}} {out}",)
    )
    yield Pair(MLP, commands=("prune {model} -s 0.9 --pack -o packed.onnx", "unpack packed.onnx -o {out}"))
    yield Pair(
        RESNET,
        commands=(
            "prune {model} -s 0.4 --structure channels+2:4 -s 0.6 -o first.onnx --save-recipe recipe.toml",
            f"run recipe.toml {{model}} {out}",
        ),
    )
    taylor = "--structure channels --criterion taylor --calibration {samples} --calibration-samples 100"
    yield Pair(TRANSFORMER, commands=(f"prune {{model}} -s 0.3 {taylor} {out}",))
    retrain = "--retrain --data {train} --eval-data {samples} --epochs 1 --lr 0.01 --iterations 2 --seed 5"
    yield Pair(MLP, commands=(f"prune {{model}} -s 0.9 {retrain} {out}",))


def all_pairs() -> list[Pair]:
    """Return every pair, each once."""
    groups = (
        _every_model, _granularities, _limits, _criteria, _allocations, _recovery, _files, _steps, _retraining,
        _command_lines,
    )  # fmt: skip
    return list({pair.name: pair for group in groups for pair in group()}.values())
