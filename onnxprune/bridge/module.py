"""`to_torch`: a graph as a `torch.nn.Module` with generated, readable code.

`OnnxModule` is a `torch.fx.GraphModule`: its graph can be read and edited with the usual fx tools, and each line
knows the ONNX node it came from (`node.meta["onnx_node"]`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import fx

from onnxprune.bridge.codegen import ANCHOR, Generated, GraphBuilder
from onnxprune.bridge.parameters import Target, trainable_values
from onnxprune.errors import ModelError
from onnxprune.model_io.bodies import graphs_of, nodes_of

ModelLike = str | Path | onnx.ModelProto | ir.Model


class OnnxModule(fx.GraphModule):
    """An ONNX graph that runs in PyTorch. Arguments are named by the graph inputs; the result is a tensor, or a tuple
    in graph output order. Dropout and BatchNormalization follow `train()` and `eval()`.

    Attributes:
        updates_statistics: Whether BatchNormalization normalises by the batch and updates its running statistics.
    """

    updates_statistics: bool = False

    def __init__(
        self, root: Generated | torch.nn.Module, graph: fx.Graph | None = None, class_name: str = "OnnxModule"
    ):
        if not isinstance(root, Generated):  # a copy: torch.fx hands over the attributes and the graph
            super().__init__(root, graph, class_name)  # type: ignore[arg-type]
            return
        attributes = {**root.attributes, "training": True, "updates_statistics": True}
        holder = torch.nn.Module()
        for name, attribute in attributes.items():
            if isinstance(attribute, torch.Tensor) and not isinstance(attribute, torch.nn.Parameter):
                holder.register_buffer(name, attribute)
            else:
                setattr(holder, name, attribute)
        super().__init__(holder, root.graph, class_name)
        if ANCHOR in root.attributes and not hasattr(self, ANCHOR):
            self.register_buffer(ANCHOR, root.attributes[ANCHOR])
        self.meta["targets"] = root.targets
        self.meta["input_names"] = root.input_names
        self.meta["output_names"] = root.output_names
        self.meta["frozen_statistics"] = False

    @property
    def targets(self) -> dict[str, Target]:
        """Parameter or buffer name (dotted inside If, Loop and Scan bodies) -> where it lives in the model."""
        targets_by_name: dict[str, Target] = {}
        for path, child in self.named_modules():
            if isinstance(child, OnnxModule):
                prefix = path + "." if path else ""
                targets_by_name.update({prefix + name: target for name, target in child.meta["targets"].items()})
        return targets_by_name

    @property
    def onnx_names(self) -> dict[str, str]:
        """Parameter or buffer name -> name of the ONNX initializer (or of a Constant node's output)."""
        return {name: target.name for name, target in self.targets.items()}

    @property
    def input_names(self) -> list[str]:
        """ONNX names of the graph inputs, in the order of the arguments."""
        return list(self.meta["input_names"])

    @property
    def argument_names(self) -> dict[str, str]:
        """ONNX name of each graph input -> its argument name in `forward`."""
        placeholders = [str(node.target) for node in self.graph.nodes if node.op == "placeholder"]
        return dict(zip(self.meta["input_names"], placeholders, strict=False))

    @property
    def output_names(self) -> list[str]:
        """ONNX names of the graph outputs, in the order they are returned."""
        return list(self.meta["output_names"])

    @property
    def code(self) -> str:
        """The generated forward, as a person reads it: one line a node, `ops.` before each operator function."""
        names = {node.target for node in self.graph.nodes if node.op == "call_function"}
        source: str = self._code
        for function in names:
            qualified = f"{function.__module__}.{function.__name__}".replace(".", "_")
            source = re.sub(rf"\b{qualified}\b", f"ops.{function.__name__}", source)
        return re.sub(
            r";  [\w, =]+ = None$|;  [\w ]+ = None(;? *[\w ]+ = None)*$|  # type: ignore.*$", "", source, flags=re.M
        )

    def freeze_statistics(self, frozen: bool = True) -> OnnxModule:
        """Keep BatchNormalization in inference mode, with its statistics as they are, also while training."""
        for child in self.modules():
            if isinstance(child, OnnxModule):
                child.meta["frozen_statistics"] = frozen
        return self.train(self.training)

    def train(self, mode: bool = True) -> OnnxModule:
        """Set the mode that Dropout and BatchNormalization follow."""
        super().train(mode)
        self.updates_statistics = mode and not self.meta.get("frozen_statistics", False)
        return self

    def __reduce__(self) -> Any:
        raise TypeError("An OnnxModule is not pickled: save its state_dict, and build it again with to_torch.")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()


def load_ir(model: ModelLike) -> ir.Model:
    """A model from a path, a protobuf or an onnx_ir model. Raises ModelError if the file cannot be read."""
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, onnx.ModelProto):
        return ir.from_proto(model)
    try:
        return ir.load(model)
    except Exception as error:
        raise ModelError(f"{model} cannot be read as an ONNX model: {error}") from error


def to_torch(model: ModelLike) -> OnnxModule:
    """The model as a PyTorch module, in `eval()` mode, float32 as stored, on the CPU.

    Raises:
        ModelError: The file cannot be read, or a node has no function in the bridge; the message names the node.
    """
    source = load_ir(model)
    inlined, own_names = _inlined(source)
    reached, opsets = trainable_values(inlined), dict(inlined.graph.opset_imports)
    builder = GraphBuilder(inlined.graph, reached, opsets, OnnxModule, own_names, _reserved_names())
    for value in inlined.graph.inputs:
        if not value.is_initializer():
            builder.add_input(value)
    return OnnxModule(builder.build()).eval()


def _inlined(model: ir.Model) -> tuple[ir.Model, frozenset[str] | None]:
    """The model with its local functions inlined, in a copy, and the names of its own values if there were any."""
    if not model.functions:
        return model, None
    names = {value.name or "" for graph in graphs_of(model) for node in graph for value in node.outputs}
    names |= {name for graph in graphs_of(model) for name in graph.initializers}
    copy = model.clone()
    _pin_versions(copy)
    return InlinePass()(copy).model, frozenset(names)


def _pin_versions(model: ir.Model) -> None:
    """Write its opset version into each node of a function that imports another one than the model.

    The inliner refuses such functions, because a model has one version for all of a domain's nodes; the bridge reads
    the version of each node.
    """
    imports = dict(model.graph.opset_imports)
    for function in model.functions.values():
        for domain, version in function.opset_imports.items():
            if imports.setdefault(domain, version) == version:
                continue
            for node in nodes_of(function):
                if node.domain == domain:
                    node.version = version
            function.opset_imports[domain] = imports[domain]


def _reserved_names() -> frozenset[str]:
    """Names a parameter cannot have, because the module has an attribute of that name."""
    blank = fx.GraphModule(torch.nn.Module(), fx.Graph())
    return frozenset(dir(blank)) | frozenset(dir(OnnxModule)) | {"meta", ANCHOR}
