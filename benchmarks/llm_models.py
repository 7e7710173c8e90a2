"""The transformers that `llm_exports.py` exports: the real classes, two layers each, all numbers random.

A family is a class of transformers with the settings of a small one. Decoders have a cache; encoders read text,
pictures or sound; those of `SEQ2SEQ` are an encoder and a decoder that looks at it.
"""

from __future__ import annotations

from dataclasses import dataclass
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
WIDE: dict[str, Any] = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 192}  # 16 at a time can go
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
IMAGE = {"image_size": 32, "patch_size": 8, "num_channels": 3}
TOWER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 96}
PICTURE = ("pixel_values", (3, 32, 32))
TEXT = (("input_ids", ()), ("attention_mask", ()))


@dataclass(frozen=True)
class Encoder:
    """A model without a cache.

    Attributes:
        model: Name of its class.
        config: Name of the class of its configuration.
        settings: What the configuration is told.
        inputs: Name of each input and its shape without the rows; an empty shape is text of any length.
        outputs: Which of its results are exported; the last hidden state where nothing is said.
        task: What optimum calls it.
    """

    model: str
    config: str
    settings: dict[str, Any]
    inputs: tuple[tuple[str, tuple[int, ...]], ...] = TEXT
    outputs: tuple[str, ...] = ()
    task: str = "feature-extraction"


ENCODERS: dict[str, Encoder] = {
    "bert": Encoder("BertModel", "BertConfig", SMALL),
    "deberta": Encoder("DebertaV2Model", "DebertaV2Config", {
        **SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}),
    "modernbert": Encoder("ModernBertModel", "ModernBertConfig", {
        **SMALL, "cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 2}),
    "vit": Encoder("ViTForImageClassification", "ViTConfig", {**TOWER, **IMAGE}, (PICTURE,), ("logits",),
                   "image-classification"),
    "clip": Encoder("CLIPModel", "CLIPConfig", {
        "text_config": {**SMALL, "projection_dim": 48}, "vision_config": {**TOWER, **IMAGE}, "projection_dim": 48},
        (*TEXT[:1], PICTURE, *TEXT[1:])),
    "sam": Encoder("SamModel", "SamConfig", {
        "vision_config": {**TOWER, "mlp_dim": 96, "output_channels": 32, "image_size": 32, "patch_size": 4,
                          "window_size": 3, "global_attn_indexes": [1], "num_pos_feats": 16, "initializer_range": 0.02},
        "prompt_encoder_config": {"hidden_size": 32, "image_embedding_size": 8, "image_size": 32, "patch_size": 4},
        "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 32},
        }, (PICTURE, ("input_points", (1, 2, 2))), ("pred_masks", "iou_scores")),
}  # fmt: skip
SEQ2SEQ: dict[str, Encoder] = {
    "t5": Encoder("T5ForConditionalGeneration", "T5Config", {
        "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 8, "d_ff": 96, "num_layers": 2, "num_heads": 8,
        "decoder_start_token_id": 0}, task="text2text-generation-with-past"),
    "whisper": Encoder("WhisperForConditionalGeneration", "WhisperConfig", {
        "vocab_size": VOCABULARY, "num_mel_bins": 80, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
        "max_source_positions": 1500, "max_target_positions": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None},
        (("input_features", (80, 3000)),), task="automatic-speech-recognition-with-past"),
}  # fmt: skip


def decoder(family: str, **more: Any) -> Any:
    """A causal language model of a real class with random weights; ``more`` are other settings of its size."""
    import transformers

    name, settings = DECODERS[family]
    classes = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}
    model = _made(classes.get(name, f"{name}ForCausalLM"), f"{name}Config", {**settings, **more})
    assert isinstance(model, transformers.PreTrainedModel)
    model.config.use_cache = True
    return model


def encoder(family: str) -> Any:
    """A model of ``ENCODERS`` or ``SEQ2SEQ``, of a real class with random weights."""
    known = (ENCODERS | SEQ2SEQ)[family]
    return _made(known.model, known.config, known.settings)


def _made(name: str, config: str, settings: dict[str, Any]) -> Any:
    """A model whose matrices are random enough that every part of it reaches the outputs."""
    import torch
    import transformers

    torch.manual_seed(SEED)
    model = getattr(transformers, name)._from_config(
        getattr(transformers, config)(**settings), attn_implementation="eager"
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" not in key and parameter.ndim > 1:
                parameter.normal_(0, 0.5 / parameter[0].numel() ** 0.5)
    return model.eval()


def example(known: Encoder, *, half: bool = False) -> dict[str, Any]:
    """Two rows of each input, by name."""
    import torch

    made: dict[str, Any] = {}
    for name, shape in known.inputs:
        if shape:
            made[name] = torch.randn(2, *shape, dtype=torch.float16 if half else torch.float32)
        else:
            made[name] = torch.ones(2, 7, dtype=torch.long)
    return made


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
