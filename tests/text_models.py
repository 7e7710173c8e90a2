"""A tokenizer of words, and the smallest graphs that read its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "far", "away", "and", "came", "back", "home", "again"]
PAD, BEGIN, UNKNOWN = "<pad>", "<s>", "<unk>"
VOCABULARY, WIDTH = 20, 8
_LONG, _FLOAT = TensorProto.INT64, TensorProto.FLOAT


def write_tokenizer(folder: Path, *, mask: bool = False) -> Path:
    """A tokenizer.json of words, which begins each text with a token; with a mask token, that of a masked model."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [PAD, BEGIN, UNKNOWN, *WORDS, *(["[MASK]"] if mask else [])]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 1)])
    tokenizer.enable_truncation(3)  # files of encoders hold such settings, which are not the run's
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def ids_of(*words: str) -> list[int]:
    return [3 + WORDS.index(word) for word in words]


class _Graph:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def table(self, name: str, *shape: int) -> str:
        return self.constant(name, self.rng.standard_normal(shape).astype(np.float32))

    def add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def model(self, inputs: dict[str, tuple[int, list[Any]]], outputs: dict[str, list[Any]]) -> ir.Model:
        graph = helper.make_graph(
            self.nodes, "text", [helper.make_tensor_value_info(n, *i) for n, i in inputs.items()],
            [helper.make_tensor_value_info(n, _FLOAT, shape) for n, shape in outputs.items()], self.constants,
        )  # fmt: skip
        return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


def encoder(
    vocabulary: int = VOCABULARY, names: tuple[str, str, str] = ("input_ids", "attention_mask", "types")
) -> ir.Model:
    """Ids, mask and types [batch, tokens] -> vectors [batch, tokens, width], zero where the mask is."""
    ids, mask, types = names
    g = _Graph()
    words = g.add("Gather", [g.table("words", vocabulary, WIDTH), ids], "embedded")
    kinds = g.add("Gather", [g.table("kinds", 2, WIDTH), types], "kind")
    total = g.add("Add", [words, kinds], "total")
    hidden = g.add("Tanh", [g.add("MatMul", [total, g.table("dense", WIDTH, WIDTH)], "dense_out")], "hidden")
    seen = g.add("Cast", [mask], "seen", to=_FLOAT)
    g.add("Mul", [hidden, g.add("Unsqueeze", [seen, g.constant("last", np.array([2]))], "column")], "vectors")
    rows = (_LONG, ["batch", "tokens"])
    return g.model({ids: rows, mask: rows, types: rows}, {"vectors": ["batch", "tokens", WIDTH]})


def placed_encoder(places: int, how: str) -> ir.Model:
    """Ids [batch, tokens] -> vectors [batch, tokens, width], with a table of positions inside the graph.

    Args:
        places: Rows of the table.
        how: ``counted``, positions are counted and index the table; ``cut``, a list of them is cut to the row first, as
            BERT is written; ``table``, the table itself is cut.
    """
    g = _Graph()
    words = g.add("Gather", [g.table("words", VOCABULARY, WIDTH), "input_ids"], "embedded")
    zero, one, table = (g.constant("zero", np.array([0])), g.constant("one", np.array([1])),
                        g.table("places", places, WIDTH))  # fmt: skip
    tokens = g.add("Shape", ["input_ids"], "extents")
    tokens = g.add("Gather", [tokens, one], "tokens")
    if how == "table":
        cut = g.add("Slice", [table, zero, tokens, zero], "cut")
    elif how == "cut":
        every = g.constant("every", np.arange(places)[None])
        cut = g.add("Gather", [table, g.add("Slice", [every, zero, tokens, one], "numbers")], "cut")
    else:
        scalars = [g.constant("from", np.array(0)), g.add("Squeeze", [tokens], "count"), g.constant("by", np.array(1))]
        cut = g.add("Gather", [table, g.add("Range", scalars, "numbers")], "cut")
    g.add("MatMul", [g.add("Add", [words, cut], "total"), g.table("dense", WIDTH, WIDTH)], "vectors")
    return g.model({"input_ids": (_LONG, ["batch", "tokens"])}, {"vectors": ["batch", "tokens", WIDTH]})


def scorer(length: int | str = "tokens") -> ir.Model:
    """Ids [batch, tokens] -> scores of the next token [batch, tokens, vocabulary]; no cache."""
    g = _Graph()
    words = g.add("Gather", [g.table("words", VOCABULARY, WIDTH), "input_ids"], "embedded")
    g.add("MatMul", [words, g.table("head", WIDTH, VOCABULARY)], "logits")
    return g.model({"input_ids": (_LONG, ["batch", length])}, {"logits": ["batch", length, VOCABULARY]})


def fixed_decoder(past: int = 3, length: int = 4) -> ir.Model:
    """A decoder whose lengths are all fixed, as phones take them: the cache is a window that the mask leaves out."""
    g = _Graph()
    words = g.add("Gather", [g.table("words", VOCABULARY, WIDTH), "input_ids"], "embedded")
    angles = g.add("Cos", [g.add("Cast", ["places"], "places_float", to=_FLOAT)], "angles")
    turned = g.add("Mul", [words, g.add("Unsqueeze", [angles, g.constant("last", np.array([2]))], "column")], "turned")
    keys = g.add("Reshape", [turned, g.constant("split", np.array([0, 0, 2, -1]))], "split_keys")
    keys = g.add("Transpose", [keys], "new_keys", perm=[0, 2, 1, 3])
    g.add("Concat", ["past_keys", keys], "present_keys", axis=2)
    seen = g.add("ReduceMean", [g.add("Cast", ["mask"], "seen", to=_FLOAT), g.constant("one", np.array([1]))], "share")
    scaled = g.add(
        "Mul", [turned, g.add("Unsqueeze", [seen, g.constant("two", np.array([2]))], "share_column")], "scaled"
    )
    g.add("MatMul", [scaled, g.table("head", WIDTH, VOCABULARY)], "logits")
    cache = ["batch", 2, past, WIDTH // 2]
    rows = (_LONG, ["batch", length])
    return g.model(
        {"input_ids": rows, "mask": (_LONG, ["batch", past + length]), "places": rows, "past_keys": (_FLOAT, cache)},
        {"logits": ["batch", length, VOCABULARY], "present_keys": ["batch", 2, past + length, WIDTH // 2]},
    )
