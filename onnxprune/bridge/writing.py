"""`write_back`: the module's numbers into a copy of the model; graph, nodes, names and metadata stay as they are.

An initializer whose numbers did not change keeps its tensor object, so that without training the result is the same
model, bit for bit. Quantised weights are rounded to their own scale and zero point.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import torch

from onnxprune.bridge import convert
from onnxprune.bridge.convert import dequantized
from onnxprune.bridge.dtypes import INTEGER_RANGE, from_ir, to_numpy, torch_dtype
from onnxprune.bridge.module import ModelLike, OnnxModule, load_ir
from onnxprune.bridge.parameters import Role, Target, constant_of
from onnxprune.errors import ModelError
from onnxprune.graph.tensors import like
from onnxprune.model_io.bodies import graphs_of


def write_back(module: torch.nn.Module, model: ModelLike) -> ir.Model:
    """A copy of `model` with the numbers of `module`, which was made from it (or from a copy) by `to_torch`.

    Values of another float type (a module trained in float32 for a float16 file) are rounded to the stored type.

    Raises:
        ModelError: A parameter has no place in the model, or not the shape that the model has there.
    """
    module = _unwrapped(module)
    result = load_ir(model).clone()
    places: dict[str, list[ir.Value]] = {}
    for value in _constants(result):
        places.setdefault(value.name or "", []).append(value)
    state = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    for name, target in module.targets.items():
        holders = places.get(target.name, [])
        if not holders and target.role is Role.BUFFER:
            continue  # a constant of an inlined local function: it does not train
        if not holders or name not in state:
            raise ModelError(f"The model has no initializer {target.name!r} to write the trained numbers to.")
        _write(holders.pop(0) if len(holders) > 1 else holders[0], state[name], target, places)
    return result


def _unwrapped(module: torch.nn.Module) -> OnnxModule:
    """The OnnxModule inside torch.compile's or a data-parallel wrapper."""
    while not isinstance(module, OnnxModule):
        inner = getattr(module, "_orig_mod", None) or getattr(module, "module", None)
        if not isinstance(inner, torch.nn.Module):
            raise ModelError("write_back takes a module that to_torch made; for others there is reexport.")
        module = inner
    return module


def _constants(model: ir.Model) -> Iterator[ir.Value]:
    """All initializers and Constant outputs, in the order in which the bridge meets graphs."""
    for graph in graphs_of(model):
        yield from graph.initializers.values()
        for node in graph:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                yield from node.outputs


def _write(value: ir.Value, trained: torch.Tensor, target: Target, places: dict[str, list[ir.Value]]) -> None:
    stored = constant_of(value)
    if stored is None:
        raise ModelError(f"Initializer {target.name!r} holds no numbers in the model.")
    if tuple(trained.shape) != tuple(stored.numpy().shape):
        raise ModelError(
            f"Initializer {target.name!r} has shape {tuple(stored.shape)} in the model and {tuple(trained.shape)} in "
            "the module: write_back needs the model that the module was made from; reexport is for changed modules."
        )
    array = _quantized(stored, trained, target, places) if target.role is Role.QUANTIZED else _plain(stored, trained)
    if array is not None:
        _replace(value, like(stored, array))


def _plain(stored: ir.TensorProtocol, trained: torch.Tensor) -> np.ndarray | None:
    """The new array, or None if the numbers are the stored ones, compared bit by bit."""
    original = from_ir(stored)
    values = trained.detach().cpu().to(original.dtype).contiguous()
    if _same_bits(values, original):
        return None
    return to_numpy(values).copy()


def _quantized(
    stored: ir.TensorProtocol, trained: torch.Tensor, target: Target, places: dict[str, list[ir.Value]]
) -> np.ndarray | None:
    scale = constant_of(places[target.scale][0])
    zero = constant_of(places[target.zero_point][0]) if target.zero_point else None
    latent = trained.detach().cpu().float()
    if _same_bits(latent, dequantized(stored, scale, zero, target)):
        return None
    assert scale is not None
    low, high = INTEGER_RANGE[stored.dtype]
    integers = convert.quantize_weight(
        latent,
        from_ir(scale).float(),
        None if zero is None else from_ir(zero),
        target.axis,
        target.block_size,
        low,
        high,
    )
    return to_numpy(integers.to(torch_dtype(stored.dtype))).astype(stored.numpy().dtype)


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and to_numpy(left).tobytes() == to_numpy(right).tobytes()


def _replace(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Put a tensor in the place of an initializer's, or into the Constant node's own attribute."""
    node = value.producer()
    if node is None:
        value.const_value = tensor
        return
    (name,) = node.attributes
    if name == "value":
        node.attributes[name] = ir.AttrTensor(name, tensor)
    elif name == "value_float":
        node.attributes[name] = ir.AttrFloat32(name, float(tensor.numpy()))
    else:
        node.attributes[name] = ir.AttrFloat32s(name, [float(x) for x in tensor.numpy()])
    if value.const_value is not None:
        value.const_value = tensor
