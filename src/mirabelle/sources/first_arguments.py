"""How data are read for a transformers model, as far as its config.json says it: what `init` writes under `[task]`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirabelle.errors import UserError
from mirabelle.sources.names import (
    CORPUS,
    FOLDER,
    HUBS,
    PACKAGE,
    QUESTIONS,
    SENTENCES,
    TAGGED,
    TEXTS,
    names_function,
    names_model_folder,
    path_of,
)

_TABLES = (".csv", ".parquet")  # which hold texts if the model reads texts
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
_TOKENS = 128
_OFFSET = 2  # positions that some models reserve
_OF_TEXTS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "MTModel",
)


def config_of(model: str, folder: Path = Path()) -> Mapping[str, Any]:
    """The config.json of a folder saved by transformers; {} for a model on a hub, or if the file cannot be read."""
    if model.startswith(HUBS):
        return {}
    try:
        found = json.loads((path_of(model, folder) / "config.json").read_text("utf-8"))
    except (OSError, ValueError, UserError):
        return {}
    return found if isinstance(found, dict) else {}


def text_arguments(model: str, data: str) -> dict[str, str | int] | None:
    """The `[task.arguments]` with which texts are read for a transformers model; None for other models or data.

    Args:
        model: folder of the model, or its name on a hub.
        data: file of texts.

    Example:
        >>> text_arguments("hf:org/bert", "./reviews.tsv")
        {'tokenizer': 'hf:org/bert', 'max_length': 128}
    """
    suffix, hub = Path(data).suffix.lower(), model.startswith(HUBS)
    if names_function(data) or not (names_model_folder(model) or hub):
        return None
    config, sentences = config_of(model), not hub and (path_of(model, Path()) / SENTENCES).is_file()
    architecture = next(iter(config.get("architectures") or ()), "")
    reads = sentences or architecture.endswith(_OF_TEXTS)
    if suffix not in (*TEXTS, *TAGGED, CORPUS) and not (reads and suffix in _TABLES):
        return None
    read: dict[str, str | int] = {"tokenizer": _from_data(model, data)}
    kind = "unlabelled" if sentences else _kind(architecture, config, suffix)
    if kind is not None and suffix != QUESTIONS:
        read["kind"] = kind
    positions = next((config[name] for name in _POSITIONS if isinstance(config.get(name), int)), 0)
    tokens = _TOKENS if positions <= 0 or positions >= _TOKENS + _OFFSET else max(positions - _OFFSET, 1)
    return {**read, "window" if suffix == CORPUS and kind in (None, "masked") else "max_length": tokens}


def _kind(architecture: str, config: Mapping[str, Any], suffix: str) -> str | None:
    """The `kind` of texts in a file for an architecture; None for the usual one of the suffix."""
    if architecture.endswith("ForTokenClassification") or suffix in TAGGED:
        return "tokens"
    if config.get("is_encoder_decoder") and architecture.endswith(_OF_TEXTS[-2:]):
        return "sequences"
    if suffix != CORPUS or not architecture or architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return None
    return "masked" if architecture.endswith("ForMaskedLM") else "unlabelled"


def _from_data(model: str, data: str) -> str:
    """The path of a model's folder relative to the folder of the data file; package, hub and absolute names are unchanged."""
    if not names_model_folder(model) or model.startswith(PACKAGE) or Path(model).is_absolute():
        return model
    if data.startswith(FOLDER):
        return str(Path(model).resolve())
    return model if Path(data).parent == Path() else os.path.relpath(model, Path(data).parent)
