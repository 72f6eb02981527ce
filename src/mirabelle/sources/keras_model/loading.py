"""From a file to a module that has been seen to compute what Keras computes."""

from __future__ import annotations

from pathlib import Path

import torch

from mirabelle.errors import UserError, first_line
from mirabelle.sources.keras_model.library import library
from mirabelle.sources.keras_model.module import KerasModule
from mirabelle.sources.keras_model.writing import KerasFile

_TOLERANCE, _SMALL, _LENGTH = 1e-4, 1e-5, 16  # the last of axes whose size is open


def module_from_keras(path: Path) -> KerasFile:
    """The module of a `.keras` or `.h5` file.

    Code that such a file may carry (`Lambda` layers) is not run: Keras refuses it in its safe mode.

    Args:
        path: of the file.

    Raises:
        UserError: E160 without Keras, E130 no such file, E141 one that Keras does not read, E121 a model without a graph, or
            one that gives other outputs than in Keras.
    """
    keras = library()
    if not path.is_file():
        raise UserError("E130", f"no model at {path}", "check the path")
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        reason = first_line(error)
        raise UserError("E141", f"Keras cannot read {path}: {reason}", "save it again as .keras with Keras 3") from error
    module = KerasFile(model)
    _hold_equal(module)
    return module


def _hold_equal(module: KerasModule) -> None:
    """Raise unless every layer by itself, where nothing saturated hides it, and the whole give what Keras gives."""
    for inner in module.nested().values():
        _hold_equal(inner)
    generator = torch.Generator().manual_seed(0)
    for layer in module.layers():
        if layer.name in module.converted:
            shape = [2, *(size or _LENGTH for size in layer.get_build_config()["input_shape"][1:])]
            whole = isinstance(getattr(module, module.names[layer.name]), torch.nn.Embedding)
            drawn = torch.ones(shape, dtype=torch.int64) if whole else torch.randn(shape, generator=generator)
            _compare(f'layer "{layer.name}"', module.computing(layer)(drawn), layer(drawn, training=False))
    example = module.example()
    if example is not None:
        inputs = example.inputs if isinstance(example.inputs, tuple) else (example.inputs,)
        given = list(inputs) if len(inputs) > 1 else inputs[0]
        _compare("the Keras model", module(*inputs), module.graph.model(given, training=False))


@torch.no_grad()
def _compare(what: str, found: object, due: object) -> None:
    for one, other in zip(_flat(found), _flat(due), strict=True):
        gap = float((one - other).abs().max()) if one.shape == other.shape else float("inf")
        if not gap <= _TOLERANCE * float(other.abs().max()) + _SMALL:
            raise UserError("E121", f"{what} gives other values in torch: by {gap:.3g}", "report it, with the file")


def _flat(found: object) -> list[torch.Tensor]:
    values = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else [found]
    return list(values)
