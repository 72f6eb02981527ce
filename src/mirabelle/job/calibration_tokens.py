"""Calibration tokens for a language model: windows of a text file, in the tokens of the model's own tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.numerics.draws import generator_from
from mirabelle.run import files
from mirabelle.sources.datasets.tokenizer import tokenizer_from

_CHARACTERS = 1 << 22  # of a text that are read at most


def tokens_of_text(model: Path, text: Path, *, samples: int = 128, length: int = 512, seed: int = 0) -> Tensor:
    """Windows of a text at random places, (samples, length).

    Args:
        model: folder with the tokenizer.
        text: a file in UTF-8; of a long one, the first four million characters.
        samples: number of windows.
        length: tokens of a window.
        seed: of the places.

    Raises:
        UserError: E130 if a file is missing; E131 if the text has less than one window.
    """
    if not text.is_file():
        raise UserError("E130", f"{text} is missing", "give a text file in UTF-8")
    content = files.read_text(text)[:_CHARACTERS]
    ids = torch.tensor(tokenizer_from(str(model), Path()).fast.encode(content, add_special_tokens=False).ids)
    if len(ids) < length:
        raise UserError("E131", f"{text} has {len(ids):,} tokens, less than one window of {length:,}", "give a longer text")
    starts = torch.randint(len(ids) - length + 1, (samples,), generator=generator_from(seed))
    return torch.stack([ids[start : start + length] for start in starts.tolist()])
