"""A metric of a module over a source, the same whether one process runs it or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxprune.data.metrics import Metric
from onnxprune.data.sources import Array, join
from onnxprune.training.feed import Feed
from onnxprune.training.losses import finish
from onnxprune.training.view import Head


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """A module's outputs as a tuple, whatever their number."""
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def to_numpy(tensor: Tensor) -> Array:
    """The tensor as an array; bfloat16, which numpy has not, as float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


@torch.no_grad()
def evaluate(
    module: nn.Module,
    feed: Feed,
    heads: Sequence[Head],
    metric: Metric,
    target_outputs: Sequence[int],
    original: nn.Module | None = None,
) -> float:
    """The metric over all samples; the module is left in the mode in which it was.

    Args:
        module: A training view's module; its outputs are completed to the file's by `heads`.
        target_outputs: The output that each target belongs to; the metric is that of the first.
        original: The original model's module, for metrics that compare with it.
    """
    mode = module.training
    module.eval()
    try:
        if metric.whole is not None:
            return _whole(module, feed, heads, metric, original)
        return _summed(module, feed, heads, metric, target_outputs[0] if target_outputs else 0, original)
    finally:
        module.train(mode)


def _summed(
    module: nn.Module, feed: Feed, heads: Sequence[Head], metric: Metric, output: int, original: nn.Module | None
) -> float:
    assert metric.update is not None
    total, count = 0.0, 0
    for shard in feed.epoch():
        if shard.weight == 0:
            continue
        mine = to_numpy(finish(heads, as_tuple(module(*shard.inputs)))[output])
        if metric.needs == "original":
            assert original is not None
            target = to_numpy(finish(heads, as_tuple(original(*shard.inputs)))[output])
        else:
            target = to_numpy(shard.targets[0])
        part, number = metric.update(mine, target)
        total, count = total + part, count + number
    if feed.world > 1:
        sums = torch.tensor([total, float(count)], dtype=torch.float64, device=feed.device)
        torch.distributed.all_reduce(sums)
        total, count = float(sums[0]), int(sums[1])
    return metric.of_sum(total, count)


def _whole(module: nn.Module, feed: Feed, heads: Sequence[Head], metric: Metric, original: nn.Module | None) -> float:
    """A metric of everything at once, so each process runs all of it (they come to the same number)."""
    assert metric.whole is not None

    def kept(network: nn.Module, inputs: Sequence[Tensor]) -> tuple[Array, ...]:
        arrays = tuple(to_numpy(o) for o in finish(heads, as_tuple(network(*inputs))))
        return arrays if metric.keeps is None else metric.keeps(arrays)

    outputs, targets = [], []
    for shard in Feed(feed.source, feed.batch_size, feed.device).epoch():
        outputs.append(kept(module, shard.inputs))
        if metric.needs == "original":
            assert original is not None
            targets.append(kept(original, shard.inputs))
        else:
            targets.append(tuple(to_numpy(t) for t in shard.targets))
    return float(np.asarray(metric.whole(join(outputs), join(targets))))
