"""Transformers as people deploy them: real classes, random weights, each exporter; what onnxprune makes of each.

    python -m venv exporters
    exporters/bin/pip install torch==2.13.0 transformers==4.57.6 optimum-onnx==0.1.0 \\
        onnxruntime-genai==0.18.0 onnxruntime==1.32.0 onnx==1.23.2 onnxscript==0.7.2
    exporters/bin/python benchmarks/llm_exports.py export FOLDER    # writes FOLDER/FAMILY-FORM/model.onnx
    python benchmarks/llm_exports.py table FOLDER --output benchmarks/results/llm_exports.md

The exporters live in a separate environment, for they pin each other. Their models are not kept in the
repository: two layers, width 64, vocabulary 320, all numbers random. The table has a line for each family and form: the
kinds of units with their numbers and the share of the weights that can go exactly and inexactly with ``--resize-io``,
how many whole layers can go, the inexact share without that flag, and the largest difference between removed and
masked in ONNX Runtime, with caches that are not empty. The builder of onnxruntime-genai 0.18 needs transformers 5,
which optimum-onnx does not accept: a second environment with transformers==5.24.0 writes its forms (genai, experts).
The table needs onnxprune and ONNX Runtime alone. Lines that its file has are not measured again, so that a run that was
broken off goes on; remove the file for a whole run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm_models import DECODERS, ENCODERS, SEED, SEQ2SEQ, WIDE, decoder, encoder, example, saved

Export = Callable[[str, Path], None]


def export_dynamo(family: str, out: Path, opset: int = 18, attention: str = "eager", half: bool = False) -> None:
    """torch.onnx.export(dynamo=True) with the cache as inputs and outputs; the length of the mask is a free symbol."""
    import torch
    from transformers import DynamicCache

    model = decoder(family)
    model.set_attn_implementation(attention)
    model = model.half() if half else model

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: Any) -> Any:
            cache = DynamicCache.from_legacy_cache(tuple(tuple(pair) for pair in past))
            result = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                                past_key_values=cache, use_cache=True)  # fmt: skip
            return result.logits, [list(pair) for pair in result.past_key_values.to_legacy_cache()]

    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    batch, length, past = 2, 3, 5
    kind_of_number = torch.float16 if half else torch.float32
    cache = [
        [torch.randn(batch, heads, past, size, dtype=kind_of_number) for _ in range(2)]
        for _ in range(config.num_hidden_layers)
    ]
    auto = torch.export.Dim.DYNAMIC
    shapes = {
        "input_ids": {0: auto, 1: auto}, "attention_mask": {0: auto, 1: auto}, "position_ids": {0: auto, 1: auto},
        "past": [[{0: auto, 2: auto}] * 2] * config.num_hidden_layers,
    }  # fmt: skip
    names = [f"past_key_values.{i}.{kind}" for i in range(config.num_hidden_layers) for kind in ("key", "value")]
    inputs = (torch.ones(batch, length, dtype=torch.long), torch.ones(batch, length + past, dtype=torch.long),
              torch.arange(past, past + length).expand(batch, -1), cache)  # fmt: skip
    program = torch.onnx.export(
        Flat(), inputs, dynamo=True, dynamic_shapes=shapes, opset_version=opset, verbose=False,
        input_names=["input_ids", "attention_mask", "position_ids", *names],
        output_names=["logits", *[name.replace("past_key_values", "present") for name in names]],
    )  # fmt: skip
    assert program is not None
    program.save(out / "model.onnx")


def export_half(family: str, out: Path) -> None:
    """The same in float16, or an encoder in float16."""
    if family in DECODERS:
        export_dynamo(family, out, half=True)
    else:
        _encoder(family, out / "model.onnx", dynamo=True, half=True)


def export_opset23(family: str, out: Path) -> None:
    """At opset 23, with Attention, RotaryEmbedding and RMSNormalization as operators of ONNX itself."""
    if family in DECODERS:
        export_dynamo(family, out, opset=23, attention="sdpa")
    else:
        _encoder(family, out / "model.onnx", dynamo=True, opset=23)


def export_experts(family: str, out: Path) -> None:
    """torch.onnx.export(dynamo=True) without a cache, experts as products of stacked matrices (transformers 5)."""
    import torch
    import transformers

    name, settings = DECODERS[family]
    torch.manual_seed(SEED)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = (
        getattr(transformers, f"{name}ForCausalLM")
        ._from_config(config, attn_implementation="eager", experts_implementation="batched_mm")
        .eval()
    )

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any) -> Any:
            return self.model(input_ids=input_ids, use_cache=False).logits

    auto, ids = torch.export.Dim.DYNAMIC, torch.ones(2, 7, dtype=torch.long)
    shapes = {"input_ids": {0: auto, 1: auto}}
    program = torch.onnx.export(Logits(), (ids,), dynamo=True, opset_version=18, verbose=False,
                                dynamic_shapes=shapes, input_names=["input_ids"])  # fmt: skip
    assert program is not None
    program.save(out / "model.onnx")


def export_encoder(family: str, out: Path) -> None:
    """torch.onnx.export(dynamo=True) of an encoder with dynamic batch and sequence."""
    _encoder(family, out / "model.onnx", dynamo=True)


def export_encoder_legacy(family: str, out: Path) -> None:
    """torch.onnx.export(dynamo=False) of an encoder with dynamic batch and sequence."""
    _encoder(family, out / "model.onnx", dynamo=False)


def _encoder(family: str, path: Path, *, dynamo: bool, opset: int = 18, half: bool = False) -> None:
    import torch

    known, model = (ENCODERS | SEQ2SEQ)[family], encoder(family)
    model.set_attn_implementation("sdpa" if opset > 18 else "eager")
    model = model.get_encoder() if family in SEQ2SEQ else model
    model = model.half() if half else model
    inputs = example(known, half=half)

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any) -> Any:
            result = self.model(**dict(zip(inputs, given, strict=True)))
            wanted = ("last_hidden_state",) if "last_hidden_state" in result else ("logits_per_image", "text_embeds")
            return tuple(result[name] for name in (known.outputs or wanted))

    axes = {name: {i: name + str(i) for i in ((0, 1) if array.ndim == 2 else (0,))} for name, array in inputs.items()}
    if not dynamo:
        torch.onnx.export(Flat(), tuple(inputs.values()), str(path), dynamo=False, input_names=list(inputs),
                          dynamic_axes=axes, opset_version=17)  # fmt: skip
        return
    auto = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(Flat(), tuple(inputs.values()), dynamo=True, input_names=list(inputs), verbose=False,
                                dynamic_shapes=(tuple(dict.fromkeys(names, auto) for names in axes.values()),),
                                opset_version=opset)  # fmt: skip
    assert program is not None
    program.save(path)


def export_optimum(family: str, out: Path, file: str = "model.onnx") -> None:
    """optimum-onnx: one decoder with its cache, or an encoder."""
    from optimum.exporters.onnx import main_export

    task = "text-generation-with-past" if family in DECODERS else (ENCODERS | SEQ2SEQ)[family].task
    model = decoder(family) if family in DECODERS else encoder(family)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "written"
        main_export(str(saved(model, Path(folder))), written, task=task, do_validation=False,
                    no_post_process=file != "decoder_model_merged.onnx" and family in SEQ2SEQ)  # fmt: skip
        (written / file).rename(written / "model.onnx")
        shutil.copytree(written, out, dirs_exist_ok=True)


def export_part(file: str) -> Export:
    """One of the files that optimum-onnx writes for a model of several parts."""
    return lambda family, out: export_optimum(family, out, file)


def export_optimum_merged(family: str, out: Path) -> None:
    """optimum-onnx's older form: one If with a decoder for the first tokens and one with a cache."""
    import optimum.exporters.onnx.model_configs  # noqa: F401 - tells the tasks which families there are
    from optimum.exporters.onnx import export
    from optimum.exporters.tasks import TasksManager
    from optimum.onnx import merge_decoders

    model = decoder(family)
    configure = TasksManager.get_exporter_config_constructor("onnx", model=model, task="text-generation",
                                                             library_name="transformers")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("first.onnx", "next.onnx")]
        for path, cached in zip(paths, (False, True), strict=True):
            export(model, configure(model.config, use_past=True, use_past_in_inputs=cached), path, opset=18)
        merge_decoders(*paths, save_path=out / "model.onnx", strict=False)


def export_genai(family: str, out: Path, precision: str = "fp32", provider: str = "cpu") -> None:
    """The builder of onnxruntime-genai."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    with tempfile.TemporaryDirectory() as folder:
        source = str(saved(decoder(family, **WIDE), Path(folder) / "source"))
        arguments = (None, source, str(out), precision, provider, str(Path(folder) / "cache"))
        create_model(*arguments, **parse_extra_options(*arguments, []))


def export_genai_half(family: str, out: Path) -> None:
    """The same in float16 for graphics processors."""
    export_genai(family, out, "fp16", "cuda")


def export_genai_int4(family: str, out: Path) -> None:
    """The same with weights in 4 bits (MatMulNBits)."""
    export_genai(family, out, "int4")


def export_fused(family: str, out: Path) -> None:
    """onnxruntime.transformers' optimizer on the legacy export."""
    from onnxruntime.transformers import optimizer

    kind = {"bert": "bert", "gpt2": "gpt2"}[family]
    with tempfile.TemporaryDirectory() as folder:
        if family in ENCODERS:
            _encoder(family, Path(folder) / "model.onnx", dynamo=False)
        else:
            export_optimum(family, Path(folder))
        fused = optimizer.optimize_model(str(Path(folder) / "model.onnx"), model_type=kind, num_heads=8,
                                         hidden_size=64, opt_level=0)  # fmt: skip
        fused.save_model_to_file(str(out / "model.onnx"))


FORMS: dict[str, Export] = {
    "dynamo": export_dynamo, "opset23": export_opset23, "optimum": export_optimum, "merged": export_optimum_merged,
    "experts": export_experts, "genai": export_genai, "genai-int4": export_genai_int4, "genai-fp16": export_genai_half,
    "encoder": export_encoder, "encoder-legacy": export_encoder_legacy, "fused": export_fused, "fp16": export_half,
    "optimum-encoder": export_part("encoder_model.onnx"), "optimum-first": export_part("decoder_model.onnx"),
    "optimum-past": export_part("decoder_with_past_model.onnx"),
    "optimum-merged": export_part("decoder_model_merged.onnx"),
    "optimum-image": export_part("vision_encoder.onnx"),
    "optimum-prompt": export_part("prompt_encoder_mask_decoder.onnx"),
}  # fmt: skip
_PARTS = ("optimum-encoder", "optimum-first", "optimum-past", "optimum-merged")


def cells() -> Iterator[tuple[str, str]]:
    """Each family with the forms that its exporters offer."""
    built = {"llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3"}
    yield "gpt-oss", "genai"  # with the operator MoE
    for family in (name for name in DECODERS if name != "gpt-oss"):
        yield from ((family, form) for form in ("dynamo", "opset23", "optimum"))
        if family in built:
            yield from ((family, form) for form in ("genai", "genai-int4", "genai-fp16"))
    yield from ((family, "fp16") for family in ("llama", "qwen3", "gemma2", "phi3", "gpt2"))
    yield from ((family, "experts") for family in ("mixtral", "qwen3-moe"))
    yield from ((family, "merged") for family in ("llama", "gpt2"))
    for family in ENCODERS:
        yield from ((family, form) for form in ("encoder", "encoder-legacy", "opset23", "fp16"))
    for family in SEQ2SEQ:
        yield from ((family, form) for form in ("encoder", "encoder-legacy", "opset23", "fp16", *_PARTS))
    yield from (("bert", "optimum"), ("vit", "optimum"), ("clip", "optimum"), ("bert", "fused"), ("gpt2", "fused"))
    yield from (("sam", "optimum-image"), ("sam", "optimum-prompt"))


def export(folder: Path, only: list[str]) -> None:
    """Write every model that is not there yet; a cell that its exporter refuses gets a file with the reason."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    for family, form in cells():
        out = folder / f"{family}-{form}"
        if (out / "model.onnx").exists() or only and not any(word in out.name for word in only):
            continue
        out.mkdir(parents=True, exist_ok=True)
        start = time.time()
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                FORMS[form](family, out)
                state = "written"
            except Exception as error:
                state = f"refused: {type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}"
                (out / "refused.txt").write_text(f"{traceback.format_exc()}\n{printed.getvalue()}")
        print(f"{out.name:24s} {time.time() - start:6.1f} s  {state}", flush=True)


def main() -> None:
    """Export, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["export", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("only", nargs="*", help="parts of names, such as llama or genai")
    parser.add_argument("--output", type=Path, help="where the table is written, or goes on")
    arguments = parser.parse_args()
    if arguments.what == "export":
        export(arguments.folder, arguments.only)
    else:
        from llm_table import table

        table(arguments.folder, arguments.only, arguments.output)


if __name__ == "__main__":
    main()
