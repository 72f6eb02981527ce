"""German captions to English: a small transformer that reads and writes, and tokens made of the captions."""

from __future__ import annotations

import gzip
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle import Generation, Task
from mirabelle.task import Metric

TOKENS, LENGTH, HEAD = 4000, 28, 32  # known, of a caption at most, numbers a head
PAD, BEGIN, END = range(3)
FILES = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
JUDGED = 250  # validation captions that every epoch translates


class Attention(nn.Module):
    """What places find where the mask lets them look."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, there: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(x), self.key(there), self.value(there))
        )
        found = F.scaled_dot_product_attention(query, key, value, mask, scale=HEAD**-0.5)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """Attention to one's own side, of a writer to what it translates, too, and a perceptron."""

    def __init__(self, width: int, *, writes: bool) -> None:
        super().__init__()
        self.own_norm, self.own = nn.LayerNorm(width), Attention(width)
        self.other_norm, self.other = (nn.LayerNorm(width), Attention(width)) if writes else (None, None)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.Dropout(0.1)
        )
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor, read: Tensor | None = None, read_mask: Tensor | None = None) -> Tensor:
        normed = self.own_norm(x)
        x = x + self.dropout(self.own(normed, normed, mask))
        if self.other is not None and self.other_norm is not None:
            x = x + self.dropout(self.other(self.other_norm(x), read, read_mask))
        return x + self.perceptron(x)


class Translator(nn.Module):
    """German tokens, and English ones written so far, to scores of what follows each, (batch, tokens, 4000)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.german, self.english = nn.Embedding(TOKENS, width), nn.Embedding(TOKENS, width)
        self.places = nn.Embedding(LENGTH, width)
        self.reader = nn.ModuleList(Layer(width, writes=False) for _ in range(layers))
        self.writer = nn.ModuleList(Layer(width, writes=True) for _ in range(layers))
        self.read_norm, self.written_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.scores = nn.Linear(width, TOKENS)

    def forward(self, german: Tensor, written: Tensor) -> Tensor:
        there = (german != PAD)[:, None, None]
        before = torch.ones(written.shape[1], written.shape[1], dtype=torch.bool).tril()
        read = self.german(german) + self.places(torch.arange(german.shape[1]))
        for layer in self.reader:
            read = layer(read, there)
        read = self.read_norm(read)
        x = self.english(written) + self.places(torch.arange(written.shape[1]))
        for layer in self.writer:
            x = layer(x, before, read, there)
        scores: Tensor = self.scores(self.written_norm(x))
        return scores


def translator(width: int = 128, layers: int = 3) -> Translator:
    return Translator(width, layers)


def task(data_dir: Path) -> Task:
    """Multi30k, judged by BLEU; only test captions may be longer than 28 tokens."""
    captions = {
        split: [
            gzip.decompress((data_dir / "multi30k" / f"{name}.{language}.gz").read_bytes()).decode().splitlines()
            for language in ("de", "en")
        ]
        for split, name in FILES.items()
    }
    captions["validation"] = [lines[:JUDGED] for lines in captions["validation"]]
    tokenizer = tokenizer_of([*captions["train"][0], *captions["train"][1]])
    return Task(
        **{split: samples(tokenizer, *lines, short=split != "test") for split, lines in captions.items()},
        loss="token_cross_entropy",
        metric=Metric.bleu(lambda tokens: tokenizer.decode(tokens).strip()),
        generation=Generation(begin=BEGIN, end=END),
        name="multi30k",
        extra_files={"tokenizer.json": tokenizer.to_str().encode()},
    )


def tokenizer_of(lines: list[str]) -> tokenizers.Tokenizer:
    """Byte pairs of both languages."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["[PAD]", "[BEGIN]", "[END]"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def samples(
    tokenizer: tokenizers.Tokenizer, german: list[str], english: list[str], *, short: bool
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """((German, English as it is written), English with its end): targets are never cut, what goes in is."""
    pairs = [
        (one.ids, [*other.ids, END])
        for one, other in zip(tokenizer.encode_batch(german), tokenizer.encode_batch(english), strict=True)
        if not short or max(len(one.ids), len(other.ids) + 1) <= LENGTH
    ]
    longest = max(LENGTH, *(len(due) for _, due in pairs)) if not short else LENGTH
    read, written = torch.full((len(pairs), LENGTH), PAD), torch.full((len(pairs), LENGTH), END)
    targets = torch.full((len(pairs), longest), -100)
    written[:, 0] = BEGIN
    for row, (one, due) in enumerate(pairs):
        read[row, : len(one)] = torch.tensor(one[:LENGTH])
        written[row, 1 : len(due)] = torch.tensor(due[: LENGTH - 1])[: len(due) - 1]
        targets[row, : len(due)] = torch.tensor(due)
    return (read, written), targets
