"""Language modelling: read a text file as windows of tokens, with the next tokens as targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mirabelle.errors import UserError
from mirabelle.run import files
from mirabelle.sources.datasets.tokenizer import tokenizer_from
from mirabelle.task.batch import Samples
from mirabelle.task.preprocessing.characters import Characters, Numbers
from mirabelle.task.preprocessing.text import TOKENIZER, Text
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.corpus_settings import Corpus
    from mirabelle.task.preprocessing import Preprocessing


def task_of(path: Path, settings: Corpus) -> Task:
    """The task of a text file; the errors are those of `Corpus`."""
    text = _read(path)
    extra_files: Mapping[str, bytes] = {}
    kind: Preprocessing
    if settings.tokenizer is None:
        kind = Characters(characters="".join(sorted(set(text))), length=settings.window)
        symbols = kind.numbers(text)
    else:
        tokenizer = tokenizer_from(settings.tokenizer, path.parent)
        inputs = ("input_ids", "attention_mask")
        kind = Text(tokenizer=files.digest(tokenizer.data), inputs=inputs, max_length=settings.window)
        extra_files = {TOKENIZER: tokenizer.data}
        tokenizer.fast.no_truncation()
        tokenizer.fast.no_padding()
        symbols = np.array(tokenizer.fast.encode(text, add_special_tokens=False).ids, np.int64)
    divided = _divided(symbols, settings)
    parts = {name: _windows(part, settings.window) for name, part in divided.items()}
    if not all(len(inputs) for inputs, _ in parts.values()):
        counts = ", ".join(f"{len(inputs)} for {name}" for name, (inputs, _) in parts.items())
        message = f"{path} has {len(symbols):,} tokens; the number of windows of {settings.window} is {counts}"
        raise UserError("E131", message, "give a longer text, or a smaller window")
    rest = sum(len(part) - inputs.numel() - 1 for part, (inputs, _) in zip(divided.values(), parts.values(), strict=True))
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
