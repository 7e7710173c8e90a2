"""``verify`` of quantised files: proved over real numbers, or said in words why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from small_models import conv_net, random, two_layers

import onnxprune
from onnxprune import model_io
from onnxprune.errors import VerificationError
from onnxprune.pipeline.check import verify
from onnxprune.pipeline.real_numbers import is_quantised, over_real_numbers

FORMS = ["int8", "int8-dynamic", "int4", "fp16"]
PRODUCTS = ("MatMul", "MatMulNBits", "Mul", "Gemm")


def quantised(folder: Path, form: str) -> tuple[Path, Path, Path]:
    """A float original, what pruning and quantising made of it, and the record, which says no hash of the output."""
    original, pruned, record = folder / "original.onnx", folder / "pruned.onnx", folder / "record.json"
    model_io.save(two_layers(64), original)
    settings: dict[str, Any] = {"calibration": {"x": random(32, 8)}, "recover": "no"} if form == "int8" else {}
    result = onnxprune.prune(original, sparsity=0.5, structure="channels", quantize=form, latency=False, **settings)
    onnxprune.save(result, pruned, record=record)
    text = record.read_text()
    record.write_text(text.replace(f'"sha256": "{model_io.sha256(pruned)}"', '"sha256": null'))
    return original, pruned, record


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_record", [True, False])
def test_a_quantised_file_is_proved_over_real_numbers(form: str, with_record: bool, tmp_path: Path) -> None:
    original, pruned, record = quantised(tmp_path, form)
    found = verify(original, pruned, record if with_record else None)
    assert found.proved and found.removed_vs_masked is not None and found.removed_vs_masked < 1e-5
    assert found.cut >= 3 and any("without its rounding" in note for note in found.notes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_record", [True, False])
def test_a_tampered_quantised_file_does_not_pass(form: str, with_record: bool, tmp_path: Path) -> None:
    original, pruned, record = quantised(tmp_path, form)
    proto = onnx.load(pruned)
    product = next(node for node in reversed(proto.graph.node) if node.op_type in PRODUCTS)
    name = product.output[0]
    product.output[0] = f"{name}_before"
    place = [node.output[0] for node in proto.graph.node].index(product.output[0]) + 1
    proto.graph.node.insert(place, onnx.helper.make_node("Tanh", [product.output[0]], [name]))
    onnx.save(proto, pruned)
    with pytest.raises(VerificationError, match="differs"):
        verify(original, pruned, record if with_record else None)


def test_a_weight_of_a_half_precision_file_that_was_changed_is_told_from_rounded_ones(tmp_path: Path) -> None:
    original, pruned, record = quantised(tmp_path, "fp16")
    clean = verify(original, pruned, record)
    assert {constant.state for constant in clean.constants} == {"rounded"} and clean.changed == 0
    assert "rounded to float16, 0 with new zeros only" in clean.lines()[1]
    proto = onnx.load(pruned)
    tensor = next(t for t in proto.graph.initializer if t.name == clean.constants[0].name)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[0] *= 2
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, pruned)
    tampered = verify(original, pruned, record)
    assert [constant.name for constant in tampered.constants if constant.state == "numbers"] == [tensor.name]


def test_without_its_rounding_a_file_is_near_to_itself(tmp_path: Path) -> None:
    for form in FORMS:
        (tmp_path / form).mkdir()
        _, pruned, _ = quantised(tmp_path / form, form)
        model = model_io.load(pruned)
        real = over_real_numbers(model)
        assert is_quantised(model) and not is_quantised(real.model)
        assert bool(real.ranges) == (form == "int8")
        found = onnxprune.compare(model, real.model)
        assert found.output_change < 0.1


def test_where_the_quantiser_folds_constants_it_says_so(tmp_path: Path) -> None:
    original, pruned = tmp_path / "original.onnx", tmp_path / "pruned.onnx"
    model_io.save(conv_net(64), original)
    data = {"x": random(16, 3, 12, 12)}
    result = onnxprune.prune(
        original, sparsity=0.5, structure="channels", quantize="int8", calibration=data, recover="no", latency=False
    )
    onnxprune.save(result, pruned)
    found = verify(original, pruned)
    has_norms = any(node.op_type == "BatchNormalization" for node in onnx.load(original).graph.node)
    assert found.proved != has_norms
    assert not has_norms or "went into other constants" in found.unproved


class Samples(CalibrationDataReader):  # type: ignore[misc]
    """A few images."""

    def __init__(self) -> None:
        self.left = iter([{"x": random(4, 3, 12, 12)} for _ in range(4)])

    def get_next(self) -> Any:
        return next(self.left, None)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=["QDQ", "QLinear"])
def test_a_quantised_original_has_a_masked_twin_at_its_zero_points(form: QuantFormat, tmp_path: Path) -> None:
    plain, original, pruned = (tmp_path / f"{name}.onnx" for name in ("plain", "original", "pruned"))
    model_io.save(conv_net(64), plain)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(str(plain), str(original), Samples(), quant_format=form, per_channel=True, **types)
    result = onnxprune.prune(original, sparsity=0.5, structure="channels", latency=False)
    onnxprune.save(result, pruned, record=tmp_path / "record.json")
    for record in (tmp_path / "record.json", None):
        found = verify(original, pruned, record)
        assert found.proved and found.removed_vs_masked is not None and found.cut > 3 and found.changed == 0
