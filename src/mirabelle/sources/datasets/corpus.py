"""Language modelling: read a text file as windows of tokens, with the next tokens as targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from mirabelle.errors import UserError
from mirabelle.numerics.draws import generator_from
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.run import files
from mirabelle.sources.datasets.tokenizer import Tokenizer, tokenizer_from
from mirabelle.task.preprocessing.characters import Characters, Numbers
from mirabelle.task.preprocessing.text import TOKENIZER, Text, vocabulary_of
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task

Around: TypeAlias = tuple[list[int], list[int]]  # special tokens before and after a window
_HIDDEN = 0.15  # fraction of the tokens that are targets
_MASKED = 0.8  # fraction of these that the mask token replaces

if TYPE_CHECKING:
    from mirabelle.sources.datasets.corpus_settings import Corpus
    from mirabelle.task.preprocessing import Preprocessing


def task_of(path: Path, settings: Corpus) -> Task:
    """The task of a text file; the errors are those of `Corpus`."""
    text = _read(path)
    extra_files: Mapping[str, bytes] = {}
    kind: Preprocessing
    around: Around = ([], [])
    if settings.tokenizer is None:
        kind = Characters(characters="".join(sorted(set(text))), length=settings.window)
        symbols = kind.numbers(text)
    else:
        tokenizer = tokenizer_from(settings.tokenizer, path.parent)
        kind = _preprocessing(tokenizer, settings)
        around = tokenizer.wrapping() if settings.kind == "masked" else around
        extra_files = {TOKENIZER: tokenizer.data}
        tokenizer.fast.no_truncation()
        tokenizer.fast.no_padding()
        symbols = np.array(tokenizer.fast.encode(text, add_special_tokens=False).ids, np.int64)
    divided = _divided(symbols, settings)
    window = settings.window - sum(map(len, around))
    parts = {name: _windows(part, window) for name, part in divided.items()}
    if not all(len(inputs) for inputs, _ in parts.values()):
        counts = ", ".join(f"{len(inputs)} for {name}" for name, (inputs, _) in parts.items())
        message = f"{path} has {len(symbols):,} tokens; the number of windows of {settings.window} is {counts}"
        raise UserError("E131", message, "give a longer text, or a smaller window")
    rest = sum(len(part) - inputs.numel() - 1 for part, (inputs, _) in zip(divided.values(), parts.values(), strict=True))
    if isinstance(kind, Text) and kind.mask is not None:
        tokens = vocabulary_of(extra_files[TOKENIZER])
        parts = {
            name: _masked(_wrapped(inputs, around), around, kind.mask, tokens, generator_from(settings.seed))
            for name, (inputs, _) in parts.items()
        }
    ready = {
        name: Samples(
            {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)} if isinstance(kind, Text) else inputs, targets
        )
        for name, (inputs, targets) in parts.items()
    }
    return Task(
        train=ready["train"],
        validation=ready["validation"],
        test=ready["test"],
        loss="token_cross_entropy",
        metric=settings.metric or "negative_perplexity",
        extra_metrics=settings.extra_metrics,
        name=path.stem,
        preprocessing=kind,
        extra_files=extra_files,
        notes=[f"{rest:,} of {len(symbols):,} tokens are left out: the ends of the parts, shorter than a window."]
        if rest
        else [],
    )


def _preprocessing(tokenizer: Tokenizer, settings: Corpus) -> Text:
    text = Text(
        tokenizer=files.digest(tokenizer.data),
        inputs=("input_ids", "attention_mask"),
        max_length=settings.window,
        use="continue",
        end=tokenizer.end,
    )
    if settings.kind is None:
        return text
    if tokenizer.mask is None:
        message = f"the tokenizer {settings.tokenizer} has no mask token"
        raise UserError("E121", message, "give that of a masked language model, or leave kind out")
    special = sum(map(len, tokenizer.wrapping()))
    if settings.window <= special:
        message = f"a window of {settings.window} has no place beside {special} special tokens"
        raise UserError("E121", message, "give a larger window")
    return replace(text, use="fill", mask=tokenizer.mask, end=None)


def _wrapped(inputs: torch.Tensor, around: Around) -> torch.Tensor:
    """Windows with the special tokens before and after them, (windows, window)."""
    before, after = (torch.tensor(tokens, dtype=torch.int64).expand(len(inputs), -1) for tokens in around)
    return torch.cat([before, inputs, after], 1)


def _masked(
    inputs: torch.Tensor, around: Around, mask: int, tokens: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, targets): 15 % of the tokens of each window are targets, of which 80 % are hidden and 10 % exchanged."""
    first, last = len(around[0]), inputs.shape[1] - len(around[1])
    count = max(1, round(_HIDDEN * (last - first)))
    drawn = torch.rand(len(inputs), last - first, generator=generator).argsort(1)[:, :count] + first
    chosen = torch.zeros_like(inputs, dtype=torch.bool).scatter_(1, drawn, True)  # noqa: FBT003 (a value)
    kinds = torch.rand(inputs.shape, generator=generator)
    others = torch.randint(tokens, inputs.shape, generator=generator)
    hidden = inputs.masked_fill(chosen & (kinds < _MASKED), mask)
    hidden = hidden.where(~(chosen & (kinds >= 1 - (1 - _MASKED) / 2)), others)
    return hidden, inputs.masked_fill(~chosen, UNLABELLED)


def _read(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: E130 if the file is missing or empty, E131 if it is not UTF-8 text.
    """
    if not path.is_file():
        raise UserError("E130", f"no text at {path}", 'paths are relative to the recipe; "~" is not expanded')
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("E131", f"{path} is not encoded in UTF-8: {error}", "save it in UTF-8") from error
    if not text:
        raise UserError("E130", f"{path} is empty", "give a text for training")
    return text


def _divided(symbols: Numbers, settings: Corpus) -> dict[str, Numbers]:
    """The tokens by split: the beginning for "train", then "validation", the end for "test"."""
    test, validation = (round(part * len(symbols)) for part in (settings.test_fraction, settings.validation_fraction))
    ends = [len(symbols) - test - validation, len(symbols) - test]
    return dict(zip(("train", "validation", "test"), np.split(symbols, ends), strict=True))


def _windows(symbols: Numbers, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, targets), each (windows, window); targets are inputs shifted by one. An incomplete last window is dropped."""
    count = max(len(symbols) - 1, 0) // window
    inputs, targets = (torch.from_numpy(symbols[k : count * window + k].reshape(count, window).copy()) for k in (0, 1))
    return inputs, targets
