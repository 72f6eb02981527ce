"""The tokenizer of a model of transformers, as it travels with what is made of the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirabelle.errors import UserError, first_line
from mirabelle.sources.models.huggingface import library, place_of


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer.

    Args:
        fast: of the package tokenizers.
        inputs: what a model takes of it, by name.
        data: its tokenizer.json.
    """

    fast: Any
    inputs: tuple[str, ...]
    data: bytes


def tokenizer_from(name: str, folder: Path) -> Tokenizer:
    """The tokenizer of a model.

    Args:
        name: of the model's folder, or "hf:…", "ms:…", "package:…", as under `[model] from`.
        folder: against which paths are read.

    Raises:
        UserError: E160 without transformers, E130 when it is no tokenizer, E121 when it is one of Python alone.
    """
    transformers, (place, revision) = library(), place_of(name, folder)
    try:
        options = {"trust_remote_code": False, **({"revision": revision} if revision else {})}
        found = transformers.AutoTokenizer.from_pretrained(place, **options)
    except Exception as error:
        message = f"transformers finds no tokenizer at {name}: {first_line(error)}"
        raise UserError("E130", message, "name the folder of the model, or hf:organisation/model") from error
    if not found.is_fast:
        raise UserError("E121", f"{name} has a tokenizer written in Python, which cannot travel", "save a fast one")
    fast = found.backend_tokenizer
    return Tokenizer(fast, tuple(found.model_input_names), fast.to_str().encode())
