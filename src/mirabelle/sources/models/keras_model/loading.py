"""From a file, or a Keras model in memory, to a module that has been seen to compute what Keras computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mirabelle.errors import UserError
from mirabelle.sources.models.keras_model.module import KerasModule
from mirabelle.sources.models.keras_model.reading import model_in
from mirabelle.sources.models.keras_model.writing import KerasFile

_TOLERANCE, _SMALL, _LENGTH = 1e-4, 1e-5, 16  # the last of axes whose size is open


def module_from_keras(source: Path | Any) -> KerasFile:
    """The module of a `.keras` or `.h5` file, or of a Keras model.

    Code that such a file may carry (`Lambda` layers) is not run: Keras refuses it in its safe mode.

    Args:
        source: the path of the file; or the model, built.

    Raises:
        UserError: E160 without Keras, E130 no such file, E141 one that Keras does not read, E121 a model without a graph, or
            one that gives other outputs than in Keras.
    """
    module = KerasFile(model_in(source) if isinstance(source, Path) else source)
    _check_equal(module)
    return module


def _check_equal(module: KerasModule) -> None:
    """Raise unless every layer by itself, where nothing saturated hides it, and the whole give what Keras gives."""
    for inner in module.nested().values():
        _check_equal(inner)
    generator = torch.Generator().manual_seed(0)
    for layer in module.layers():
        if layer.name in module.converted:
            shape = [2, *(size or _LENGTH for size in layer.get_build_config()["input_shape"][1:])]
            whole = isinstance(getattr(module, module.names[layer.name]), torch.nn.Embedding)
            drawn = torch.ones(shape, dtype=torch.int64) if whole else torch.randn(shape, generator=generator)
            _compare(f'layer "{layer.name}"', module.whole(layer)(drawn), layer(drawn, training=False))
    example = module.example()
    if example is not None:
        inputs = example.inputs if isinstance(example.inputs, tuple) else (example.inputs,)
        given = list(inputs) if len(inputs) > 1 else inputs[0]
        _compare("the Keras model", module.as_in_keras(module(*inputs)), module.graph.model(given, training=False))


@torch.no_grad()
def _compare(what: str, found: object, due: object) -> None:
    for one, other in zip(_flat(found), _flat(due), strict=True):
        gap = float((one - other).abs().max()) if one.shape == other.shape else float("inf")
        if not gap <= _TOLERANCE * float(other.abs().max()) + _SMALL:
            raise UserError("E121", f"{what} gives other values in torch: by {gap:.3g}", "report it, with the file")


def _flat(found: object) -> list[torch.Tensor]:
    values = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else [found]
    return list(values)
