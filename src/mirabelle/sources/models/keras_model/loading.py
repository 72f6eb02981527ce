"""Convert a Keras file, or a Keras model in memory, to a PyTorch module, and check that it computes the same values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.numerics.draws import generator_from
from mirabelle.sources.models.keras_model.compiling import compilation_in
from mirabelle.sources.models.keras_model.module import KerasModule
from mirabelle.sources.models.keras_model.reading import model_in
from mirabelle.sources.models.keras_model.writing import KerasFile

_TOLERANCE, _SMALL = 1e-4, 1e-5  # relative, absolute
_SAMPLES = 3
_LENGTHS = (16, 64, 224)  # sizes to try for dynamic axes


def module_from_keras(source: Path | Any) -> KerasFile:
    """A PyTorch module from a `.keras` or `.h5` file, or from a Keras model.

    Code in such a file (`Lambda` layers) is not run, since Keras loads it in safe mode.

    Args:
        source: the path of the file, or a built model.

    Raises:
        UserError: E160 if Keras is not installed, E130 if the file does not exist, E141 if Keras cannot read it, E121 if the
            model has no graph of layers, or if the outputs of the module and of Keras differ.
    """
    module = KerasFile(model_in(source), compilation_in(source)) if isinstance(source, Path) else KerasFile(source)
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
            shape = [2, *(size or _LENGTHS[0] for size in layer._inbound_nodes[0].input_tensors[0].shape[1:])]
            whole = isinstance(getattr(module, module.names[layer.name]), torch.nn.Embedding)
            drawn = torch.ones(shape, dtype=torch.int64) if whole else torch.randn(shape, generator=generator)
            _compare(f'layer "{layer.name}"', module.whole(layer)(drawn), layer(drawn, training=False))
    for inputs in _drawn(module):
        given = list(inputs) if len(inputs) > 1 else inputs[0]
        _compare("the Keras model", module.as_in_keras(module(*inputs)), module.graph.model(given, training=False))


def _drawn(module: KerasModule) -> Iterator[list[Tensor]]:
    """Inputs for a whole model: without padding, and, if a layer makes a mask, with padding behind and in front."""
    layers = list(_all_layers(module))
    values = [float(layer.mask_value) for layer in layers if type(layer).__name__ == "Masking"]
    values += [0.0] if any(getattr(layer, "mask_zero", False) for layer in layers) else []
    words = min((layer.input_dim for layer in layers if type(layer).__name__ == "Embedding"), default=2)
    size = next((size for size in _LENGTHS if _takes(module, size, words)), None)
    if size is None:
        return
    yield _inputs(module, size, words)
    for value in values:
        for back in (False, True):
            yield [_padded(part, value, back=back) for part in _inputs(module, size, words)]


def _all_layers(module: KerasModule) -> Iterator[Any]:
    """The layers of a module and of the models within it."""
    yield from module.layers()
    for inner in module.nested().values():
        yield from _all_layers(inner)


def _takes(module: KerasModule, size: int, words: int) -> bool:
    """Whether Keras can run its model with this size of the dynamic axes."""
    inputs = _inputs(module, size, words)
    try:
        module.graph.model(inputs if len(inputs) > 1 else inputs[0], training=False)
    except (ValueError, RuntimeError, IndexError):
        return False
    return True


def _inputs(module: KerasModule, size: int, words: int) -> list[Tensor]:
    """Random inputs: numbers from a normal distribution, indices from 1 to below `words`, or truth values."""

    def drawn(shape: list[int], kind: str, generator: torch.Generator) -> Tensor:
        if "float" in kind:
            return torch.randn(shape, generator=generator)
        return (
            torch.rand(shape, generator=generator) > 1 / 3
            if kind == "bool"
            else torch.randint(1, max(words, 2), shape, generator=generator)
        )

    values = module.graph.function.inputs
    shapes = [[_SAMPLES, *(axis or size for axis in value.shape[1:])] for value in values]
    return [
        drawn(shape, str(value.dtype), generator_from(k)) for k, (shape, value) in enumerate(zip(shapes, values, strict=True))
    ]


def _padded(x: Tensor, value: float, *, back: bool) -> Tensor:
    """The same sequences with padding behind or in front: none in the first, and more in each further one."""
    if x.ndim < 2:  # noqa: PLR2004 (samples and positions)
        return x
    padding = x.shape[1] * torch.arange(len(x)) // len(x)
    places = torch.arange(x.shape[1]).flip(0) if back else torch.arange(x.shape[1])
    counts = places[None] < (x.shape[1] - padding)[:, None]
    return torch.where(counts.reshape(*counts.shape, *[1] * (x.ndim - 2)), x, torch.tensor(value, dtype=x.dtype))


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
