"""The pages for users, with the exporters that they name: each exports a network of its own, without a network to fetch
weights from, and the page's commands run on the file."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'onnxprune[test]'")

from beside_torchvision import declaring
from test_user_pages import ROOT, run_commands
from user_models import make_classifier, make_detector, make_encoder, make_speech

ULTRALYTICS = """
from ultralytics import YOLO

YOLO("yolo11n.yaml").export(format="onnx", opset=17, imgsz=32)
"""

TIMM = """
import timm
import torch

network = timm.create_model("mobilenetv3_small_100", pretrained=False).eval()
torch.onnx.export(
    network, (torch.zeros(1, 3, 224, 224),), "classifier.onnx", dynamo=False, opset_version=17, input_names=["image"],
    dynamic_axes={"image": {0: "batch"}},
)
"""

OPTIMUM = """
import subprocess
import sys
from pathlib import Path

import tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
BertModel(BertConfig(vocab_size=64, **sizes)).save_pretrained("network")
words = tokenizers.Tokenizer.from_file("tokenizer.json")
PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained("network")
beside = Path(sys.executable).with_name("optimum-cli")
start = [str(beside)] if beside.exists() else [sys.executable, "-m", "optimum.commands.optimum_cli"]
command = ["export", "onnx", "--model", "network", "--task", "feature-extraction", "bert/"]
subprocess.run([*start, *command], check=True)
"""

WHISPER = """
import shutil
import subprocess
import sys
from pathlib import Path

from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, **heads}
tokens = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
config = WhisperConfig(**sizes, **tokens, suppress_tokens=None, begin_suppress_tokens=None, max_target_positions=32)
WhisperForConditionalGeneration(config).save_pretrained("network")
WhisperFeatureExtractor().save_pretrained("network")
beside = Path(sys.executable).with_name("optimum-cli")
start = [str(beside)] if beside.exists() else [sys.executable, "-m", "optimum.commands.optimum_cli"]
command = ["export", "onnx", "--model", "network", "--task", "automatic-speech-recognition", "whisper/"]
subprocess.run([*start, *command], check=True)
for half in ("encoder", "decoder"):
    shutil.copy(f"whisper/{half}_model.onnx", f"{half}.onnx")
"""


@dataclass(frozen=True)
class Exporter:
    """How a page's exporter is tried.

    Attributes:
        page: The page.
        packages: The packages that export, as they are imported.
        said: What the page says of the export, which the code keeps to.
        code: Exports a network with random weights.
        written: The file that the exporter writes.
        make: Puts a stand-in for the model, and data, into a folder; of `AFTERWARDS`, data for what was exported.
        model: The name that the page's commands use.
    """

    page: str
    packages: tuple[str, ...]
    said: tuple[str, ...]
    code: str
    written: str
    make: Callable[[Path], None]
    model: str


EXPORTERS = [
    Exporter(
        "yolo", ("ultralytics",), ("yolo export model=yolo11n.pt format=onnx opset=17",), ULTRALYTICS, "yolo11n.onnx",
        make_detector, "yolo.onnx",
    ),
    Exporter(
        "classifier", ("timm",), ("timm.create_model(\"mobilenetv3_small_100\"",), TIMM, "classifier.onnx",
        make_classifier, "classifier.onnx",
    ),
    Exporter(
        "bert", ("optimum", "transformers"), ("optimum-cli export onnx", "--task feature-extraction bert/"), OPTIMUM,
        "bert/model.onnx", make_encoder, "bert.onnx",
    ),
    Exporter(
        "speech", ("optimum", "transformers"), ("optimum-cli export onnx", "--task automatic-speech-recognition whisp"),
        WHISPER, "encoder.onnx", make_speech, "encoder.onnx",
    ),
]  # fmt: skip


AFTERWARDS = (make_classifier, make_speech)
"""What makes data of the shapes that were exported."""


@pytest.mark.zoo  # not for its models, for its time
@pytest.mark.timeout(900)
@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda exporter: exporter.page)
def test_the_commands_of_a_page_run_on_what_its_exporter_writes(exporter: Exporter, tmp_path: Path) -> None:
    missing = [name for name in exporter.packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: the exporter of howto/{exporter.page}.md is not tried here")
    if exporter.make not in AFTERWARDS:
        exporter.make(tmp_path)
    offline = {"YOLO_OFFLINE": "True", "YOLO_CONFIG_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    variables = declaring({**os.environ, **offline}, tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", exporter.code]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if exporter.make in AFTERWARDS:
        exporter.make(tmp_path)
    if exporter.written != exporter.model:
        shutil.copyfile(tmp_path / exporter.written, tmp_path / exporter.model)
    run_commands(exporter.page, tmp_path)


@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda exporter: exporter.page)
def test_a_page_says_what_its_exporter_is_called_with_and_which_version_was_tried(exporter: Exporter) -> None:
    text = (ROOT / "docs" / "howto" / f"{exporter.page}.md").read_text(encoding="utf-8")
    assert all(words in text for words in exporter.said)
    assert any(line.startswith("Tried with") and exporter.packages[0] in line for line in text.splitlines())
