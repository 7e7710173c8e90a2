"""A pruned model in a loop of the user's own: zeros stay, what is learned comes back into the file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional as F
from training_models import blobs, mlp

from onnxprune import model_io
from onnxprune.errors import RecipeError
from onnxprune.runtime import make_session, run
from onnxprune.training import OwnLoop


def pruned() -> ir.Model:
    """The small network with half of its weights at zero."""
    model = mlp().clone()
    for value in model.graph.initializers.values():
        array = value.const_value.numpy().copy()
        if array.ndim == 2:
            array[np.abs(array) < np.median(np.abs(array))] = 0
            value.const_value = ir.tensor(array, name=value.name)
    return model


def zeros(model: ir.Model) -> dict[str, np.ndarray]:
    return {
        n: v.const_value.numpy() == 0 for n, v in model.graph.initializers.items() if v.const_value.numpy().ndim == 2
    }


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
    ],
)
def test_zeros_stay_zero_in_any_optimiser_and_the_rest_is_trained(optimizer: object) -> None:
    model = pruned()
    loop = OwnLoop(model)
    images, labels = (torch.from_numpy(np.asarray(a)) for a in blobs())
    steps = optimizer(loop.module.parameters())  # type: ignore[operator]
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(loop.module(images), labels.long())
        steps.zero_grad()
        loss.backward()
        steps.step()
        losses.append(float(loss.detach()))
    names = loop.module.onnx_names
    inside = {names[n]: p.detach().numpy() for n, p in loop.module.named_parameters()}
    trained = loop.trained()
    for name, mask in zeros(model).items():
        assert mask.any() and not inside[name][mask].any()
        assert (zeros(trained)[name] == mask).all()
    assert losses[-1] < losses[0]
    assert zeros(model)  # the model itself is as it was


def test_what_is_saved_gives_what_the_module_gives(tmp_path: Path) -> None:
    loop = OwnLoop(pruned())
    with torch.no_grad():
        for parameter in loop.module.parameters():
            parameter += 0.1
    loop._bound.zero()
    loop.save(tmp_path / "trained.onnx")
    images = np.asarray(blobs()[0])[:8]
    model = model_io.load(tmp_path / "trained.onnx")
    name = str(model.graph.inputs[0].name)
    (output,) = run(make_session(model), {name: images}).values()
    wanted = loop.module.eval()(torch.from_numpy(images)).detach().numpy()
    wanted = F.softmax(torch.from_numpy(wanted), -1).numpy() if np.allclose(output.sum(-1), 1) else wanted
    np.testing.assert_allclose(output, wanted, atol=1e-5)


def test_the_distance_from_the_original_is_zero_for_the_original_and_falls_by_training() -> None:
    images = torch.from_numpy(np.asarray(blobs()[0]))
    same = OwnLoop(mlp(), original=mlp())
    assert float(same.distance(same.module.eval()(images), images)) == pytest.approx(0, abs=1e-6)
    loop = OwnLoop(pruned(), original=mlp())
    steps = torch.optim.Adam(loop.module.parameters(), 0.02)
    distances = []
    for _ in range(30):
        loss = loop.distance(loop.module(images), images)
        steps.zero_grad()
        loss.backward()
        steps.step()
        distances.append(float(loss.detach()))
    assert distances[-1] < 0.5 * distances[0]


def test_what_is_missing_or_wrong_is_said() -> None:
    loop = OwnLoop(pruned())
    with pytest.raises(ValueError, match="original="):
        loop.distance(torch.zeros(1), torch.zeros(1))
    with pytest.raises(RecipeError, match="belongs to no weight"):
        OwnLoop(pruned(), masks={"nothing": np.zeros(3, bool)})


def test_a_network_that_was_copied_before_is_not_touched() -> None:
    model = pruned()
    before = copy.deepcopy(zeros(model))
    loop = OwnLoop(model, masks={})
    with torch.no_grad():
        for parameter in loop.module.parameters():
            parameter.fill_(1.0)
    assert not any(mask.any() for mask in zeros(loop.trained()).values())
    assert all((zeros(model)[name] == mask).all() for name, mask in before.items())
