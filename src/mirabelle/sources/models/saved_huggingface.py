"""Save a compressed transformers model as a folder that `from_pretrained` can load."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from mirabelle.errors import UserError
from mirabelle.sources.models.native import plain_tensors
from mirabelle.sources.names import PICKLES

_INNER = ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim")
_COUNTER = "num_batches_tracked"  # of a batch norm, which a folded one has no more; no output depends on it
_OF_WEIGHTS = ("config.json", "generation_config.json")


def save_pretrained(dense: nn.Module, origin: Path | None, model: nn.Module, folder: Path) -> None:
    """Save a compressed transformers model with its config, and with the other files of the original folder.

    A config has one intermediate size for all layers, so it can change only if it is the same in all layers. The numbers of
    heads and the hidden size cannot change.

    Args:
        dense: the original transformers model.
        origin: its folder, if it has one.
        model: the compressed model; names of its tensors begin with "model.".
        folder: the target folder.

    Raises:
        UserError: E121 if the config cannot represent the model's widths.
    """
    tensors = {name.removeprefix("model."): tensor for name, tensor in plain_tensors(model).items()}
    config: Any = copy.deepcopy(dense.config)
    _narrow(config, dict(dense.state_dict()), tensors)
    fresh: Any = type(dense)(config)
    tensors |= _computed_again(fresh, tensors)
    counters = {name: tensor for name, tensor in dense.state_dict().items() if name.endswith(_COUNTER)}
    tensors = counters | tensors
    for name, tensor in fresh.state_dict().items():
        shape = tuple(tensors[name].shape) if name in tensors else None
        if shape != tuple(tensor.shape):
            cut = "was removed" if shape is None else f"has shape {shape}, but a config can only give {tuple(tensor.shape)}"
            remedy = "use model.onnx or mirabelle.load, or prune only intermediate sizes, with the same sparsity in all layers"
            raise UserError("E121", f'"{name}" {cut}', remedy)
    fresh.load_state_dict({name: tensors[name] for name in fresh.state_dict()})
    fresh.eval().save_pretrained(folder)
    for path in sorted(origin.iterdir()) if origin is not None else ():
        if path.suffix not in (".safetensors", *PICKLES) and path.name not in _OF_WEIGHTS and _may_be_copied(path):
            shutil.copyfile(path, folder / path.name)


def _may_be_copied(path: Path) -> bool:
    """Whether a path is a file of its folder; a link is, if it leads into the folder itself or, in a hub's cache, its blobs."""
    if not path.is_file() or path.name.endswith(".index.json"):
        return False
    place, folder = path.resolve(), path.parent.resolve()
    return place.parent in (folder, folder.parent.parent / "blobs")


def _computed_again(fresh: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sources of weights that the original computes, such as by a weight norm, where the compressed model has the weight.

    Args:
        fresh: a model of the original's class.
        tensors: of the compressed model.
    """
    found: dict[str, Tensor] = {}
    for name, module in fresh.named_modules():
        for weight in module.parametrizations if is_parametrized(module) else ():
            plain = tensors.get(f"{name}.{weight}")
            if plain is not None and plain.shape == getattr(module, weight).shape:
                setattr(module, weight, plain)
                sources = module.parametrizations[weight].state_dict()
                found |= {f"{name}.parametrizations.{weight}.{key}": tensor for key, tensor in sources.items()}
    return found


def _narrow(config: Any, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Set the intermediate sizes of a config to those of the tensors."""
    changes: dict[int, set[int]] = {}
    for name, tensor in before.items():
        for old, new in zip(tensor.shape, after[name].shape if name in after else (), strict=False):
            if old != new:
                changes.setdefault(old, set()).add(new)
    for field in _INNER:
        found = changes.get(getattr(config, field, None) or 0, set())
        if len(found) == 1:
            setattr(config, field, next(iter(found)))
