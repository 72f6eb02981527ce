"""Inputs of the sizes that a model of transformers takes, as far as its config and its image processor say them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mirabelle.numerics.draws import generator_from

EXAMPLES = 2
_TOKENS = 16
_HALVES = 2  # frames of which the encoder of Whisper makes one position
_SECOND = 16_000  # samples of a recording at the rate that models of speech take


def _size_of_images(folder: Path | None) -> int | tuple[int, int] | None:
    """The size that the image processor in a folder gives images, as far as its file says it."""
    path = None if folder is None else folder / "preprocessor_config.json"
    try:
        said = json.loads(path.read_text("utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return None
    size = said.get("crop_size" if said.get("do_center_crop") else "size") if isinstance(said, dict) else None
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if {"height", "width"} <= size.keys() else size.get("shortest_edge")
    return size if isinstance(size, (int, tuple)) else None


def example_inputs(model: Any, folder: Path | None, positions: int | None) -> dict[str, Tensor] | None:
    """Inputs of two samples for a model of transformers; None if their sizes are not known.

    Args:
        model: as transformers has loaded it.
        folder: of the model, with its image processor.
        positions: most tokens of a text; None if any number.
    """
    config = model.config
    name = model.main_input_name
    if name == "input_ids":
        tokens = torch.ones(EXAMPLES, min(positions or _TOKENS, _TOKENS), dtype=torch.int64)
        decoder = {"decoder_input_ids": tokens} if config.is_encoder_decoder else {}
        seen = getattr(config, "vision_config", None)
        side = getattr(seen, "image_size", None) if "pixel_values" in inspect.signature(model.forward).parameters else None
        images = {"pixel_values": torch.randn(EXAMPLES, 3, side, side, generator=generator_from(0))} if side else {}
        return {"input_ids": tokens, "attention_mask": tokens, **decoder, **images}
    size, generator = getattr(config, "image_size", None) or _size_of_images(folder), generator_from(0)
    if name == "pixel_values" and size is not None:
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return {name: torch.randn(EXAMPLES, getattr(config, "num_channels", 3), *sides, generator=generator)}
    if name == "input_features" and config.is_encoder_decoder and hasattr(config, "num_mel_bins"):  # Whisper
        sound = torch.randn(EXAMPLES, config.num_mel_bins, _HALVES * config.max_source_positions, generator=generator)
        return {
            name: sound,
            "decoder_input_ids": torch.ones(EXAMPLES, min(config.max_target_positions, _TOKENS), dtype=torch.int64),
        }
    if name != "input_values":
        return None
    features = (config.max_length, config.num_mel_bins) if hasattr(config, "num_mel_bins") else (_SECOND,)
    return {name: torch.randn(EXAMPLES, *features, generator=generator)}
