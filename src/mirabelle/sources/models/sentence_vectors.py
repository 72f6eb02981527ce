"""Folders of sentence-transformers: a transformer, a pooling of its tokens, and often vectors of length 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.sources.models.huggingface import HuggingFaceModel

_POOLINGS = ("cls", "mean", "max", "mean_sqrt_len")
_BY_FLAG = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}
_INSTEAD = "compress the transformer alone, in a folder without modules.json, or export the whole to ONNX and give that file"


class SentenceVectors(HuggingFaceModel):
    """A transformer whose token vectors h_t become one vector for each text, (batch, width).

    With the attention mask m_t of a text, "mean" is Σ m_t h_t / Σ m_t, "mean_sqrt_len" the sum over √Σ m_t, "max" the largest
    value over the tokens with m_t = 1, "cls" is h_0; then v / ‖v‖, if the folder says so.

    Args:
        transformer: the transformers model as it is loaded.
        pooling: "cls", "mean", "max" or "mean_sqrt_len".
        normalize: whether vectors get the length 1.
    """

    def __init__(self, transformer: HuggingFaceModel, pooling: str, *, normalize: bool) -> None:
        super().__init__(transformer.model, transformer.origin, transformer.untrained, transformer.unused)
        self.pooling, self.normalize = pooling, normalize

    def forward(self, *alone: Tensor, **inputs: Tensor) -> Tensor:
        if alone or "attention_mask" not in inputs:
            raise UserError("E131", "sentence vectors need an attention_mask", "give input_ids and attention_mask by name")
        states: Tensor = self.model(**inputs)["last_hidden_state"]
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        if self.pooling == "cls":
            vectors = states[:, 0]
        elif self.pooling == "max":
            vectors = states.masked_fill(mask == 0, -1e9).amax(1)
        else:
            count = mask.sum(1).clamp_min(1e-9)
            vectors = (states * mask).sum(1) / (count if self.pooling == "mean" else torch.sqrt(count))
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def write_back(self, model: nn.Module, folder: Path) -> str:
        """Save the folder `huggingface/` with the transformer and the other modules, for sentence-transformers.

        Raises:
            UserError: E121 if the config cannot represent the widths of a pruned model.
        """
        written = super().write_back(model, folder)
        for place in sorted(self.origin.iterdir()) if self.origin is not None else ():
            if place.is_dir() and not place.name.startswith("."):
                shutil.copytree(place, folder / written / place.name, dirs_exist_ok=True)
        return written


def with_pooling(transformer: HuggingFaceModel, modules: Path) -> SentenceVectors:
    """The model that a folder of sentence-transformers describes.

    Args:
        transformer: from the same folder.
        modules: its modules.json.

    Raises:
        UserError: E121 for a module or a pooling that is not supported, E141 if a file cannot be read.
    """
    listed = [(str(one["type"]).rpartition(".")[2], str(one["path"])) for one in _read(modules)]
    kinds = [kind for kind, _ in listed]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        message = f"{modules} lists {', '.join(kinds)}; supported are Transformer, Pooling and Normalize"
        raise UserError("E121", message, _INSTEAD)
    config = _read(modules.parent / listed[1][1] / "config.json")
    flags = [_BY_FLAG.get(flag, flag) for flag, on in config.items() if on is True and flag.startswith("pooling_mode_")]
    given = config.get("pooling_mode") or flags
    chosen = [given] if isinstance(given, str) else list(given)
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        message = f"{modules.parent} pools by {', '.join(map(str, chosen))}; supported is one of {', '.join(_POOLINGS)}"
        raise UserError("E121", message, _INSTEAD)
    return SentenceVectors(transformer, chosen[0], normalize=kinds[-1] == "Normalize")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("E141", f"{path} cannot be read: {error}", "save the model again") from error
