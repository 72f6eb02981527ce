"""Convert a Keras file, or a Keras model in memory, to a PyTorch module, and check that it computes the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mirabelle.errors import UserError
from mirabelle.numerics.draws import generator_from
from mirabelle.sources.models.keras_model.module import KerasModule
from mirabelle.sources.models.keras_model.reading import model_in
from mirabelle.sources.models.keras_model.writing import KerasFile

_TOLERANCE, _SMALL, _LENGTH = 1e-4, 1e-5, 16  # tolerances, relative and absolute; size used for dynamic axes


def module_from_keras(source: Path | Any) -> KerasFile:
    """A PyTorch module from a `.keras` or `.h5` file, or from a Keras model.

    Code in such a file (`Lambda` layers) is not run, since Keras loads it in safe mode.

    Args:
        source: the path of the file, or a built model.

    Raises:
        UserError: E160 if Keras is not installed, E130 if the file does not exist, E141 if Keras cannot read it, E121 if the
            model has no graph of layers, or if the outputs of the module and of Keras differ.
    """
    module = KerasFile(model_in(source) if isinstance(source, Path) else source)
    _check_equal(module)
    return module


def _check_equal(module: KerasModule) -> None:
    """Raise an error unless every converted layer, and the whole model, computes the same values as in Keras.

    Layers are compared one by one, too, since a saturated output of the whole model could hide a difference.
    """
    for inner in module.nested().values():
        _check_equal(inner)
    generator = generator_from(0)
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
            message = f"{what} computes other values in PyTorch than in Keras; the largest difference is {gap:.3g}"
            raise UserError("E121", message, "report it, with the file")


def _flat(found: object) -> list[torch.Tensor]:
    values = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else [found]
    return list(values)
