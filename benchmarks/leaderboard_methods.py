"""The methods of the leaderboard: from a network, a cost and calibration inputs to a smaller model.

onnxprune runs through its public function; onnxsim and Torch-Pruning as their documents say, looking for the ratio at
which the multiply-adds are those asked for. Torch-Pruning prunes PyTorch modules, so it takes part where a network has
one: its weights are read from the ONNX file, its BatchNorm statistics re-estimated on the calibration inputs.
"""

from __future__ import annotations

import importlib.util
import io
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxprune import model_io
from onnxprune.data.batches import batches
from onnxprune.graph import size
from onnxprune.pipeline.run import prune
from onnxprune.runtime import one_sample
from onnxprune.runtime.probe import concrete_shapes

Inputs = Mapping[str, npt.NDArray[Any]]
_HALVINGS = 10  # of the ratio that reaches a cost


class Absent(Exception):
    """A method cannot take part; the text says why."""


@dataclass(frozen=True)
class Cost:
    """How much is to be left.

    Attributes:
        name: As the table calls it.
        units: Whether whole units go; else single weights.
        amount: The share of the multiply-adds that is left, or of the weights that go; 2:4 is 0.5.
        pattern: Of N:M.
    """

    name: str
    units: bool
    amount: float
    pattern: tuple[int, int] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The same as settings of onnxprune."""
        if self.units:
            return {"structure": "channels", "target_macs": self.amount}
        if self.pattern is not None:
            return {"structure": f"{self.pattern[0]}:{self.pattern[1]}"}
        return {"structure": "weights", "sparsity": self.amount}


COSTS = (
    *(Cost(f"{share:g} of the work", True, share) for share in (0.8, 0.7, 0.6, 0.5, 0.33)),
    *(Cost(f"{share:.0%} of the weights", False, share) for share in (0.5, 0.7, 0.8, 0.9)),
    Cost("2:4", False, 0.5, (2, 4)),
)


@dataclass(frozen=True, eq=False)
class Made:
    """A smaller model, and how far removed is from masked where the method shows it."""

    model: ir.Model
    difference: float | None = None


@dataclass(frozen=True)
class Method:
    """A way to make a model smaller.

    Attributes:
        run: From the file, the cost, calibration inputs and a PyTorch module of the network, if any.
        drawn: Whether it looks at calibration inputs: others are run once.
        package: What has to be installed, beside onnxprune.
    """

    run: Callable[[Path, Cost, Inputs, Any], Made]
    drawn: bool = True
    package: str = ""

    @property
    def installed(self) -> bool:
        """Whether it can run here."""
        return not self.package or importlib.util.find_spec(self.package) is not None


def macs_of(model: ir.Model) -> int:
    """Multiply-adds of one sample."""
    return size.figures(model, concrete_shapes(model, one_sample(model))).macs or 0


def at_work(cut: Callable[[float], ir.Model], dense: int, share: float) -> ir.Model:
    """Return the cut of the least ratio that leaves at most a share of the multiply-adds.

    Raises:
        Absent: Even the largest ratio leaves more.
    """
    low, high, best = 0.0, 0.98, None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        model = cut(middle)
        if macs_of(model) <= share * dense:
            best, high = model, middle
        else:
            low = middle
    if best is None:
        raise Absent("it cannot save so much")
    return best


def _ours(**more: Any) -> Callable[[Path, Cost, Inputs, Any], Made]:
    def run(path: Path, cost: Cost, inputs: Inputs, module: Any) -> Made:
        result = prune(path, latency=False, **{"calibration": inputs, **cost.settings, **more})
        verdict = result.verdict
        return Made(result.model, None if verdict is None else verdict.removed_vs_masked)

    return run


def _magnitude(path: Path, cost: Cost, inputs: Inputs, module: Any) -> Made:
    """Least magnitude first, all layers ranked together; nothing makes up for it."""
    settings = {"criterion": "magnitude", "recover": "no"}
    if cost.pattern is None:
        settings["allocation"] = "global"
    return _ours(calibration=None, **settings)(path, cost, inputs, module)


def _onnxsim(path: Path, cost: Cost, inputs: Inputs, module: Any) -> Made:
    """Whole channels by weight and activation norms (Wanda); single weights by SparseGPT."""
    import onnxsim

    proto, model = onnxsim.simplify(onnx.load(str(path)))[0], model_io.load_any(path)
    feeds = [dict(feed) for feed in batches(model, inputs, 32)]
    if not cost.units:
        pattern = {} if cost.pattern is None else {"n": cost.pattern[0], "m": cost.pattern[1]}
        made = onnxsim.apply_sparsegpt_pruning(proto, calibration_data=feeds, sparsity=cost.amount, **pattern)
        return Made(model_io.load_any(made))

    def cut(ratio: float) -> ir.Model:
        return model_io.load_any(
            onnxsim.apply_structured_wanda_pruning(proto, calibration_data=feeds, sparsity=ratio, global_sparsity=False)
        )

    return Made(at_work(cut, macs_of(model), cost.amount))


def _torch_pruning(path: Path, cost: Cost, inputs: Inputs, module: Any) -> Made:
    """Groups of coupled channels by magnitude, ranked together; BatchNorm statistics re-estimated."""
    if not cost.units:
        raise Absent("it removes whole units only")
    if module is None:
        raise Absent("no PyTorch module of this network is at hand")
    import torch
    import torch_pruning

    model = model_io.load_any(path)
    ((name, images),) = inputs.items()
    pictures = torch.from_numpy(np.ascontiguousarray(images))

    def cut(ratio: float) -> ir.Model:
        network = with_weights(module(), model)
        heads = [m for m in network.modules() if isinstance(m, torch.nn.Linear)][-1:]
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        torch_pruning.pruner.BasePruner(
            network, pictures[:1], importance, pruning_ratio=ratio, global_pruning=True, ignored_layers=heads
        ).step()
        return exported(re_estimated(network, pictures), pictures[:1], name)

    return Made(at_work(cut, macs_of(model), cost.amount))


def with_weights(network: Any, model: ir.Model) -> Any:
    """Put the numbers of an ONNX file into a module whose parameters have the same names.

    Raises:
        Absent: Some are not there.
    """
    import torch

    state = network.state_dict()
    values: dict[str, ir.Value | None] = dict(model.graph.initializers)
    values |= {str(node.outputs[0].name): node.inputs[0] for node in model.graph if node.op_type == "Identity"}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        value = values.get(name)  # exporters keep one of two constants that are equal, and an Identity of it
        if value is None or value.const_value is None or value.const_value.shape.numpy() != tuple(tensor.shape):
            raise Absent(f"the file has no weight '{name}' of the module's shape")
        state[name] = torch.from_numpy(np.array(value.const_value.numpy()))
    network.load_state_dict(state)
    return network.eval()


def re_estimated(network: Any, pictures: Any) -> Any:
    """The module with the statistics of its BatchNorms taken anew, as the mean over the inputs."""
    import torch

    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    with torch.no_grad():
        for part in pictures.split(128):
            network(part)
    return network.eval()


def exported(network: Any, example: Any, name: str) -> ir.Model:
    """A module as an ONNX model with a free batch."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quiet, sys.stdout = sys.stdout, io.StringIO()
        try:
            torch.onnx.export(
                network, (example,), path, input_names=[name], output_names=["scores"], dynamo=False,
                dynamic_axes={name: {0: "N"}, "scores": {0: "N"}},
            )  # fmt: skip
        finally:
            sys.stdout = quiet
        return model_io.load_any(onnx.load(str(path)))


METHODS: Mapping[str, Method] = {
    "onnxprune": Method(_ours()),
    "onnxprune, medium effort": Method(_ours(effort="medium")),
    "onnxprune, high effort": Method(_ours(effort="high")),
    "onnxprune, synthetic inputs": Method(_ours(calibration="synthetic"), drawn=False),  # one seed
    "magnitude": Method(_magnitude, drawn=False),
    "onnxsim": Method(_onnxsim, package="onnxsim"),
    "Torch-Pruning": Method(_torch_pruning, package="torch_pruning"),
}
BY_DEFAULT: Sequence[str] = ("onnxprune", "onnxprune, synthetic inputs", "magnitude", "onnxsim", "Torch-Pruning")
