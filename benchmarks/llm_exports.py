"""Transformers as people deploy them: real classes, random weights, each exporter; what onnxprune makes of each.

    python -m venv exporters
    exporters/bin/pip install torch==2.13.0 transformers==4.57.6 optimum-onnx==0.1.0 \\
        onnxruntime-genai==0.18.0 onnxruntime==1.32.0 onnx==1.23.2 onnxscript==0.7.2
    exporters/bin/python benchmarks/llm_exports.py export FOLDER    # writes FOLDER/FAMILY-FORM/model.onnx
    python benchmarks/llm_exports.py table FOLDER                   # onnxprune and ONNX Runtime alone

The exporters live in a separate environment, for they pin each other. Their models are not kept in the
repository: two layers, width 64, vocabulary 320, all numbers random. The table has a line for each family and form: the
kinds of units with their numbers and the share of the weights that can go exactly and inexactly with ``--resize-io``,
how many whole layers can go, the inexact share without that flag, and the largest difference between removed and
masked in ONNX Runtime, with caches that are not empty. The builder of onnxruntime-genai 0.18 needs transformers 5,
which optimum-onnx does not accept: a second environment with transformers==5.24.0 writes its forms (genai, experts).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SEED = 0
VOCABULARY = 320
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
    "intermediate_size": 96, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "decoder_sparse_step": 1,
           "mlp_only_layers": []}  # fmt: skip
WIDE: dict[str, Any] = {"hidden_size": 128, "head_dim": 16, "intermediate_size": 192}  # kernels of rotary heads take 16
WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": None, "head_dim": 8}),
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 8, **WINDOWS, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3Text", {**GROUPED, "head_dim": 8, **WINDOWS, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3", {**GROUPED, "original_max_position_embeddings": 64}),
    "gpt2": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 64}),
    "mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    "qwen3-moe": ("Qwen3Moe", {**GROUPED, **EXPERTS, "head_dim": 8}),
    "gpt-oss": ("GptOss", {**GROUPED, **WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", SMALL),
    "deberta": ("DebertaV2Model", "DebertaV2Config",
                {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}),
    "modernbert": ("ModernBertModel", "ModernBertConfig",
                   {**SMALL, "cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 2}),
}  # fmt: skip

# -- export ---------------------------------------------------------------------------------------------------------


def decoder(family: str, **more: Any) -> Any:
    """A causal language model of a real class with random weights; ``more`` are other settings of its size."""
    import torch
    import transformers

    name, settings = DECODERS[family]
    torch.manual_seed(SEED)
    config = getattr(transformers, f"{name}Config")(**{**settings, **more}, attn_implementation="eager")
    config.use_cache = True
    classes = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}
    model = getattr(transformers, classes.get(name, f"{name}ForCausalLM"))(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" not in key and parameter.ndim > 1:
                parameter.normal_(0, 0.5 / parameter.shape[-1] ** 0.5)
    return model.eval()


def encoder(family: str) -> Any:
    """An encoder of a real class with random weights."""
    import torch
    import transformers

    model, config, settings = ENCODERS[family]
    torch.manual_seed(SEED)
    made = getattr(transformers, config)(**settings, attn_implementation="eager")
    return getattr(transformers, model)(made).eval()


def saved(model: Any, folder: Path) -> Path:
    """The model as a Hugging Face folder with a tokenizer of bytes, as the builders read it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"<{i}>": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                            unk_token="<pad>").save_pretrained(folder)  # fmt: skip
    return folder


def export_dynamo(family: str, out: Path) -> None:
    """torch.onnx.export(dynamo=True) with the cache as inputs and outputs; the length of the mask is a free symbol."""
    import torch
    from transformers import DynamicCache

    model = decoder(family)

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
    cache = [[torch.randn(batch, heads, past, size) for _ in range(2)] for _ in range(config.num_hidden_layers)]
    auto = torch.export.Dim.DYNAMIC
    shapes = {
        "input_ids": {0: auto, 1: auto}, "attention_mask": {0: auto, 1: auto}, "position_ids": {0: auto, 1: auto},
        "past": [[{0: auto, 2: auto}] * 2] * config.num_hidden_layers,
    }  # fmt: skip
    names = [f"past_key_values.{i}.{kind}" for i in range(config.num_hidden_layers) for kind in ("key", "value")]
    inputs = (torch.ones(batch, length, dtype=torch.long), torch.ones(batch, length + past, dtype=torch.long),
              torch.arange(past, past + length).expand(batch, -1), cache)  # fmt: skip
    program = torch.onnx.export(
        Flat(), inputs, dynamo=True, dynamic_shapes=shapes, opset_version=18, verbose=False,
        input_names=["input_ids", "attention_mask", "position_ids", *names],
        output_names=["logits", *[name.replace("past_key_values", "present") for name in names]],
    )  # fmt: skip
    assert program is not None
    program.save(out / "model.onnx")


def export_opset23(family: str, out: Path) -> None:
    """The same at opset 23, with Attention as one operator."""
    import torch

    model = encoder(family) if family in ENCODERS else decoder(family)
    model.set_attn_implementation("sdpa")
    ids = torch.ones(2, 7, dtype=torch.long)
    auto = torch.export.Dim.DYNAMIC
    keywords = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family in DECODERS:
        keywords = {"input_ids": ids}
        model.config.use_cache = False
    program = torch.onnx.export(model, (), kwargs=keywords, dynamo=True, opset_version=23, verbose=False,
                                dynamic_shapes={name: {0: auto, 1: auto} for name in keywords})  # fmt: skip
    assert program is not None
    program.save(out / "model.onnx")


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


def _encoder(family: str, path: Path, *, dynamo: bool) -> None:
    import torch

    model = encoder(family)
    ids = torch.randint(3, VOCABULARY, (2, 7))
    shapes: dict[str, Any] = {}
    if dynamo:
        auto = torch.export.Dim.DYNAMIC
        shapes["dynamic_shapes"] = {name: {0: auto, 1: auto} for name in ("input_ids", "attention_mask")}
        shapes["opset_version"] = 18
    else:
        names = ("input_ids", "attention_mask")
        shapes["dynamic_axes"] = {name: {0: "batch", 1: "sequence"} for name in (*names, "last_hidden_state")}
        shapes["output_names"], shapes["opset_version"] = ["last_hidden_state"], 17
        model.config.return_dict = False
    program = torch.onnx.export(model, (ids, torch.ones_like(ids)), None if dynamo else str(path), dynamo=dynamo,
                                input_names=["input_ids", "attention_mask"], verbose=False, **shapes)  # fmt: skip
    if program is not None:
        program.save(path)


def export_optimum(family: str, out: Path) -> None:
    """optimum-onnx, one decoder with its cache."""
    from optimum.exporters.onnx import main_export

    with tempfile.TemporaryDirectory() as folder:
        task = "feature-extraction" if family in ENCODERS else "text-generation-with-past"
        model = encoder(family) if family in ENCODERS else decoder(family)
        main_export(str(saved(model, Path(folder))), out, task=task, do_validation=False, no_post_process=False)


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


def export_genai(family: str, out: Path, precision: str = "fp32") -> None:
    """The builder of onnxruntime-genai."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    with tempfile.TemporaryDirectory() as folder:
        source = str(saved(decoder(family, **WIDE), Path(folder) / "source"))
        arguments = (None, source, str(out), precision, "cpu", str(Path(folder) / "cache"))
        create_model(*arguments, **parse_extra_options(*arguments, []))


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


Export = Callable[[str, Path], None]
FORMS: dict[str, Export] = {
    "dynamo": export_dynamo, "opset23": export_opset23, "optimum": export_optimum, "merged": export_optimum_merged,
    "experts": export_experts, "genai": export_genai, "genai-int4": export_genai_int4, "encoder": export_encoder,
    "encoder-legacy": export_encoder_legacy, "fused": export_fused,
}  # fmt: skip


def cells() -> Iterator[tuple[str, str]]:
    """Each family with the forms that its exporters offer."""
    built = {"llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3"}
    yield "gpt-oss", "genai"  # with the operator MoE
    for family in (name for name in DECODERS if name != "gpt-oss"):
        yield from ((family, form) for form in ("dynamo", "opset23", "optimum"))
        if family in built:
            yield from ((family, form) for form in ("genai", "genai-int4"))
    yield from ((family, "experts") for family in ("mixtral", "qwen3-moe"))
    yield from ((family, "merged") for family in ("llama", "gpt2"))
    for family in ENCODERS:
        yield from ((family, form) for form in ("encoder", "encoder-legacy", "opset23"))
    yield from (("bert", "optimum"), ("bert", "fused"), ("gpt2", "fused"))


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


# -- the table ------------------------------------------------------------------------------------------------------


def table(folder: Path, only: list[str]) -> None:
    """Print a line for each model that was written; one that was refused is named at the end."""
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "tests")]
    print("| model | kinds (~ inexact) | exact | inexact | layers | without --resize-io | removed against masked |")
    print("|---|---|---|---|---|---|---|")
    refused = []
    for path in sorted(folder.iterdir()):
        if only and not any(word in path.name for word in only):
            continue
        if (path / "model.onnx").exists():
            print(f"| {path.name} | {' | '.join(_cells(path / 'model.onnx'))} |", flush=True)
        else:
            refused.append(path.name)
    print(f"\nNot written by their exporter: {', '.join(refused) or 'none'}")


def _cells(path: Path) -> list[str]:
    """Kinds, shares of the weights and the verdict of the oracle, with caches that may be narrowed where there are."""
    import oracle

    from onnxprune.graph.narrowing import free_caches
    from onnxprune.structure.analysis import analyse
    from onnxprune.structure.blocks import layers_of, residual_blocks

    def load() -> Any:
        model = oracle.normalised(path)
        free_caches(model)
        return model

    structure, kept = analyse(load()), analyse(oracle.normalised(path))
    kinds: dict[str, int] = {}
    for group in structure.groups:
        name = f"{group.kind}{'~' if group.inexact else ''}"
        kinds[name] = kinds.get(name, 0) + len(group)
    shares = [structure.prunable_share(exact=exact) for exact in (True, False)]
    before = kept.prunable_share(exact=False)
    # Kernels that round activations to 8 bits (accuracy_level 4) jump where sums differ in the last bit.
    limit = 1e-2 if structure.packed else 1e-4
    try:
        verdict = oracle.check(load, 0.4, 1)
        good = verdict.difference <= limit and verdict.signal > limit
        said = f"{verdict.difference:.0e} at {verdict.settings} settings{'' if good else ', TOO LARGE'}"
    except Exception as error:
        said = f"not run: {type(error).__name__}: {str(error)[:80]}"
    listed = ", ".join(f"{name} {count}" for name, count in sorted(kinds.items()))
    cells = [f"{part / max(whole, 1):.2f}" for part, whole in shares]
    return [
        listed,
        *cells,
        str(len(layers_of(residual_blocks(structure)))),
        f"{before[0] / max(before[1], 1):.2f}",
        said,
    ]


def main() -> None:
    """Export, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["export", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("only", nargs="*", help="parts of names, such as llama or genai")
    arguments = parser.parse_args()
    if arguments.what == "export":
        export(arguments.folder, arguments.only)
    else:
        table(arguments.folder, arguments.only)


if __name__ == "__main__":
    main()
