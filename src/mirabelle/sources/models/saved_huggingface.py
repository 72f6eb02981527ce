"""A model of transformers, compressed, as a folder that `from_pretrained` reads."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.sources.models.native import plain_tensors

_INNER = ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim")
_OF_WEIGHTS = ("config.json", "generation_config.json")


def save_pretrained(dense: nn.Module, origin: Path | None, model: nn.Module, folder: Path) -> None:
    """Save what steps have made of a model, with the files that stood beside the weights it came from.

    A config says one inner width for all layers, so it may change where all have the same; heads and widths of states may not.

    Args:
        dense: the model of transformers as it came.
        origin: its folder, if it has one.
        model: descends from it; its tensors stand under "model.".
        folder: where it goes.

    Raises:
        UserError: E121 when the config cannot say its widths.
    """
    tensors = {name.removeprefix("model."): tensor for name, tensor in plain_tensors(model).items()}
    config: Any = copy.deepcopy(dense.config)
    _narrow(config, dict(dense.state_dict()), tensors)
    fresh: Any = type(dense)(config)
    for name, tensor in fresh.state_dict().items():
        shape = tuple(tensors[name].shape) if name in tensors else None
        if shape != tuple(tensor.shape):
            cut = "is gone" if shape is None else f"is {shape}, and a config says {tuple(tensor.shape)}"
            remedy = "go on with model.onnx or mirabelle.load, or cut inner widths alone, by one sparsity for every group"
            raise UserError("E121", f'"{name}" {cut}', remedy)
    fresh.load_state_dict({name: tensors[name] for name in fresh.state_dict()})
    fresh.eval().save_pretrained(folder)
    for path in sorted(origin.iterdir()) if origin is not None else ():
        if (
            path.is_file()
            and path.suffix != ".safetensors"
            and path.name not in _OF_WEIGHTS
            and not path.name.endswith(".index.json")
        ):
            shutil.copyfile(path, folder / path.name)


def _narrow(config: Any, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Set the inner widths of a config to those of the tensors."""
    changes: dict[int, set[int]] = {}
    for name, tensor in before.items():
        for old, new in zip(tensor.shape, after[name].shape if name in after else (), strict=False):
            if old != new:
                changes.setdefault(old, set()).add(new)
    for field in _INNER:
        found = changes.get(getattr(config, field, None) or 0, set())
        if len(found) == 1:
            setattr(config, field, next(iter(found)))
