"""The page on language models, with the exporters that it names: each exports a small decoder of a real class, the
page's commands prune it, and the runtime that the exporter is for generates with what is left."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
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


@pytest.mark.zoo  # not for its models, for its time
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("exporter", [GENAI, OPTIMUM], ids=["genai", "optimum"])
def test_the_commands_of_the_page_run_on_what_an_exporter_writes(exporter: Exporter, tmp_path: Path) -> None:
    _installed(exporter)
    variables = {**environment(tmp_path), "HF_HUB_OFFLINE": "1"}

    def run(command: list[str] | str) -> str:
        done = subprocess.run(command, shell=isinstance(command, str), cwd=tmp_path, env=variables, capture_output=True,
                              text=True)  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

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
