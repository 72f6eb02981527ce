"""Load the tokenizer of a transformers model, in the form that is stored with a compressed model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirabelle.errors import UserError, first_line
from mirabelle.sources.models.huggingface import library, place_of

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer.

    Args:
        fast: the tokenizer object of the package tokenizers.
        inputs: names of the model inputs that it produces, such as "input_ids".
        data: content of its tokenizer.json.
        mask: the token that hides another one, if there is one.
        end: the end symbol of a text, if there is one.
    """

    fast: Any
    inputs: tuple[str, ...]
    data: bytes
    mask: int | None = None
    end: int | None = None

    def wrapping(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after a text."""
        self.fast.no_truncation()
        self.fast.no_padding()
        encoding = self.fast.encode("a")
        own = [k for k, special in enumerate(encoding.special_tokens_mask) if not special]
        ids = list(encoding.ids)
        return (ids[: own[0]], ids[own[-1] + 1 :]) if own else ([], ids)


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
        if Path(place).is_dir() and not any((Path(place) / file).is_file() for file in _FILES):
            remedy = "save the tokenizer there, or name the folder of another model that has it"
            raise UserError("E130", f"there is no tokenizer in {name}", remedy) from error
        message = f"transformers cannot load a tokenizer from {name}: {first_line(error)}"
        raise UserError("E130", message, "name the folder of the model, or hf:organisation/model") from error
    if not found.is_fast:
        message = f"{name} has a slow tokenizer (written in Python), which cannot be stored with a model"
        raise UserError("E121", message, "save a fast tokenizer")
    fast = found.backend_tokenizer
    inputs, data = tuple(found.model_input_names), fast.to_str().encode()
    return Tokenizer(fast, inputs, data, found.mask_token_id, found.eos_token_id)
