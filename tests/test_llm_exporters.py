"""The page on language models, with the exporters that it names: each exports a small decoder of a real class, the
page's commands prune it, and the runtime that the exporter is for generates with what is left.

What onnxruntime-genai generates, and the logits behind each token, are those of the original with zeros in place of
what went, for two families, in float32 and int4, and for each kind of unit."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from beside_torchvision import declaring
from command_line import run as onnxprune
from test_user_pages import blocks, commands_of, environment

CHECKPOINT = """
import sys
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4}
more = {"head_dim": 16, "intermediate_size": 192, "max_position_embeddings": 64, "vocab_size": 320}
special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LlamaForCausalLM(LlamaConfig(**sizes, **more, **special)).save_pretrained("checkpoint")
words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"<{i}>": i for i in range(3, 320)}}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                        unk_token="<pad>").save_pretrained("checkpoint")
"""


@dataclass(frozen=True)
class Exporter:
    """An exporter of the page, with the runtime that its models are for.

    Attributes:
        packages: What has to be installed, as it is imported.
        transformers: The major version of transformers that it works with.
        command: The first words of its command on the page.
        runtime: What the code on the page that generates imports.
    """

    packages: tuple[str, ...]
    transformers: str
    command: str
    runtime: str


GENAI = Exporter(
    ("onnxruntime_genai", "transformers", "torch"),
    "5",
    "python -m onnxruntime_genai.models.builder",
    "onnxruntime_genai",
)
OPTIMUM = Exporter(("optimum", "transformers", "torch"), "4", "optimum-cli export onnx", "optimum.onnxruntime")


def _installed(exporter: Exporter) -> None:
    missing = [name for name in exporter.packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: {exporter.packages[0]} is not tried here")
    from importlib.metadata import version

    if version("transformers").split(".")[0] != exporter.transformers:
        pytest.skip(f"{exporter.packages[0]} needs transformers {exporter.transformers}")


def _export(exporter: Exporter) -> list[str]:
    """The exporter's command on the page, as this environment calls it."""
    (line,) = [line for block in blocks("llm", "shell") for line in commands_of(block)
               if line.startswith(exporter.command)]  # fmt: skip
    first, *others = line.split()
    beside = Path(sys.executable).with_name(first)
    return [sys.executable if first == "python" else str(beside), *others]


def _shell(folder: Path) -> Callable[[list[str] | str], str]:
    """Runs a command in the folder, without a network, and returns what it printed."""
    variables = declaring({**environment(folder), "HF_HUB_OFFLINE": "1"}, folder)

    def run(command: list[str] | str) -> str:
        done = subprocess.run(command, shell=isinstance(command, str), cwd=folder, env=variables, capture_output=True,
                              text=True)  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.mark.zoo  # not for its models, for its time
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("exporter", [GENAI, OPTIMUM], ids=["genai", "optimum"])
def test_the_commands_of_the_page_run_on_what_an_exporter_writes(exporter: Exporter, tmp_path: Path) -> None:
    _installed(exporter)
    run = _shell(tmp_path)
    run([sys.executable, "-W", "ignore", "-c", CHECKPOINT])
    run(_export(exporter))
    for folder in ("narrow", "shallow"):
        (tmp_path / folder).mkdir()
    found = [line for block in blocks("llm", "console") for line in commands_of(block) if "llama/" in line]
    assert len(found) == 4
    said = [run(command) for command in found]
    assert "\ndecoder, 3 layers, 8 heads in 4 KV groups, head size 16, MLP 192" in said[0], said[0]
    (code,) = [block for block in blocks("llm", "python") if exporter.runtime in block]
    for folder in ("narrow", "shallow"):
        sizes = [os.path.getsize(path) for path in (tmp_path / folder).glob("model.onnx*")]
        assert sizes and sum(sizes) < sum(os.path.getsize(path) for path in (tmp_path / "llama").glob("model.onnx*"))
        tokens = run([sys.executable, "-W", "ignore", "-c", code.replace("narrow", folder)])
        numbers = [int(word) for word in tokens.replace("[", " ").replace("]", " ").replace(",", " ").split()]
        assert len(numbers) > 3 and numbers[:3] == [5, 6, 7] and all(0 <= number < 320 for number in numbers)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Gives the folder of a family in a precision, as the builder of onnxruntime-genai writes it."""
    _installed(GENAI)
    made: dict[tuple[str, str], Path] = {}

    def build(family: str, precision: str) -> Path:
        if (family, precision) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{precision}")
            run = _shell(folder)
            wide = CHECKPOINT.replace('"head_dim": 16', '"head_dim": 32')  # of which half can go
            assert wide != CHECKPOINT
            run([sys.executable, "-W", "ignore", "-c", wide.replace("Llama", family)])
            command = _export(GENAI)
            command[command.index("fp32")] = precision
            run(command)
            made[family, precision] = folder / "llama"
        return made[family, precision]

    return build


UNITS = {
    "kv-groups": (["--structure", "channels", "--kinds", "kv-groups"], "attn.o_proj"),
    "neurons": (["--structure", "channels", "--kinds", "neurons"], "mlp.down_proj"),
    "layers": (["--structure", "layers"], ""),
    "head-size": (["--structure", "channels", "--kinds", "head-size"], "attn.qkv_proj"),
}
"""For each kind of unit, the flags that remove it, and the product that reads it, or of head sizes that makes it."""
CASES = [*itertools.product(("Llama", "Qwen3"), ("fp32", "int4"), ("kv-groups", "neurons", "layers")),
         ("Llama", "fp32", "head-size")]  # fmt: skip
"""Of Qwen3 the norm of each head sees its size; in int4 a block of 32 is a whole head here."""


@pytest.mark.zoo  # not for its models, for its time
@pytest.mark.parametrize(("family", "precision", "units"), CASES)
def test_the_runtime_generates_what_the_masked_original_does(
    family: str, precision: str, units: str, built: Callable[[str, str], Path], tmp_path: Path,
    record_property: Callable[[str, str], None],
) -> None:  # fmt: skip
    source, narrow, masked = built(family, precision), tmp_path / "narrow", tmp_path / "masked"
    narrow.mkdir()
    flags = ["--sparsity", "0.5", "--resize-io", *UNITS[units][0]]
    assert onnxprune(source / "model.onnx", "-o", narrow / "model.onnx", *flags, "--record", tmp_path / "cut.json") == 0
    before, after = (_decoder(folder) for folder in (source, narrow))
    told = {"kv-groups": "num_key_value_heads", "layers": "num_hidden_layers", "head-size": "head_size"}
    fewer = told.get(units)
    assert {name for name in before if before[name] > after[name]} - {"num_attention_heads"} == {fewer} - {None}

    shutil.copytree(source, masked)
    _zero(masked / "model.onnx", json.loads((tmp_path / "cut.json").read_text()), UNITS[units][1])
    (tokens, logits), (expected, of_masked) = _generated(narrow), _generated(masked)
    assert tokens == expected
    largest = np.abs(of_masked).max()
    assert np.abs(logits - _generated(source)[1]).max() > 2e-2 * largest  # so that what went counted
    if precision == "int4":  # its kernels round activations to 8 bits, which jumps where sums differ in the last bit
        assert np.abs(logits - of_masked).max() <= 1e-2 * largest
        for folder in (narrow, masked):
            _without_rounding(folder / "model.onnx")
        (tokens, logits), (expected, of_masked) = _generated(narrow), _generated(masked)
        assert tokens == expected
    difference = float(np.abs(logits - of_masked).max() / np.abs(of_masked).max())
    record_property("difference of the logits, relative to the largest", f"{difference:.1e}")
    assert difference <= 1e-5


def _decoder(folder: Path) -> dict[str, int]:
    """The numbers of a decoder that the runtime is told."""
    told = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    return {name: value for name, value in told.items() if isinstance(value, int)}


def _zero(path: Path, record: Mapping[str, Any], product: str) -> None:
    """Write zeros into the stored weights, by hand: those of a product that went, or all that a layer adds."""
    model = onnx.load(path)
    gone = [name.split("/")[2] for name in record["blocks"] if "post_attention_layernorm" in name]
    assert product or len(gone) == 1 and len(record["blocks"]) == 2
    products = [product] if product else [f"{gone[0]}.attn.o_proj", f"{gone[0]}.mlp.down_proj"]
    zeroed = 0
    for tensor in model.graph.initializer:
        array = np.array(onnx.numpy_helper.to_array(tensor))
        # Of int4 those with fractions are the scales, one for each block.
        if array.dtype.kind != "f" or not any(f"{name}.MatMul." in tensor.name for name in products):
            continue
        axis, kept = next(iter(record["kept"].get(tensor.name, {"0": []}).items()))
        np.moveaxis(array, int(axis), 0)[np.setdiff1d(np.arange(array.shape[int(axis)]), kept)] = 0
        zeroed += 1
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    assert zeroed == (3 if product else 2)
    _replace(path, model)


def _without_rounding(path: Path) -> None:
    """Have the kernels of int4 weights compute with activations as they are."""
    model = onnx.load(path)
    levels = [a for node in model.graph.node if node.op_type == "MatMulNBits" for a in node.attribute
              if a.name == "accuracy_level"]  # fmt: skip
    assert levels
    for attribute in levels:
        attribute.i = 1
    _replace(path, model)


def _replace(path: Path, model: onnx.ModelProto) -> None:
    for old in path.parent.glob(f"{path.name}*"):  # with its data beside it
        old.unlink()
    onnx.save(model, path)


def _generated(folder: Path) -> tuple[list[int], np.ndarray]:
    """What onnxruntime-genai generates from three tokens, and the logits [token, vocabulary] that it took them from."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=16)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([[5, 6, 7]], np.int32))
    logits = []
    while not generator.is_done():
        logits.append(np.array(generator.get_logits())[0, -1])
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)], np.stack(logits)
