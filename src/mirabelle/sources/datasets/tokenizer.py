"""Load the tokenizer of a transformers model, in the form that is stored with a compressed model."""

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
        fast: the tokenizer object of the package tokenizers.
        inputs: names of the model inputs that it produces, such as "input_ids".
        data: content of its tokenizer.json.
    """

    fast: Any
    inputs: tuple[str, ...]
    data: bytes


def tokenizer_from(name: str, folder: Path) -> Tokenizer:
    """Load the tokenizer of a model.

    Args:
        name: the model's folder, or "hf:…", "ms:…", "package:…", as under `[model] from`.
        folder: relative paths refer to it.

    Raises:
        UserError: E160 if transformers is not installed, E130 if there is no tokenizer, E121 if it has no fast version.
    """
    transformers, (place, revision) = library(), place_of(name, folder)
    try:
        options = {"trust_remote_code": False, **({"revision": revision} if revision else {})}
        found = transformers.AutoTokenizer.from_pretrained(place, **options)
    except Exception as error:
        message = f"transformers cannot load a tokenizer from {name}: {first_line(error)}"
        raise UserError("E130", message, "name the folder of the model, or hf:organisation/model") from error
    if not found.is_fast:
        message = f"{name} has a slow tokenizer (written in Python), which cannot be stored with a model"
        raise UserError("E121", message, "save a fast tokenizer")
    fast = found.backend_tokenizer
    return Tokenizer(fast, tuple(found.model_input_names), fast.to_str().encode())
