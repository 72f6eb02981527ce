"""Which layer of the student looks at which layer of the teacher: named, or found by depth and shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirabelle.batch import Batch
from mirabelle.errors import UserError
from mirabelle.features import Taps, features_of, layer_of
from mirabelle.objectives.forward import Kind
from mirabelle.patterns import every_pattern_matches, matches

_DIMENSIONS = {2: "vectors", 3: "tokens", 4: "maps", 5: "maps"}
_BY_CHANNEL = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d)  # whose results are (batch, channels, places)


@dataclass(frozen=True)
class Layer:
    """A layer as a tap names it, with what it gives for the example.

    Args:
        name: of the tap.
        shape: of the tensor.
        channels: the dimension of its width: 1 of maps, the last of tokens and vectors.
    """

    name: str
    shape: tuple[int, ...]
    channels: int

    @property
    def width(self) -> int:
        return self.shape[self.channels]

    @property
    def places(self) -> tuple[int, ...]:
        """The sizes of all dimensions but the batch and the width."""
        return tuple(size for d, size in enumerate(self.shape) if d not in (0, self.channels))

    def __str__(self) -> str:
        return f'"{self.name}", {self.shape}'


@dataclass(frozen=True)
class Pair:
    """A layer of the student and the layer of the teacher that it looks at."""

    student: Layer
    teacher: Layer


def pairs_of(
    model: nn.Module,
    teacher: nn.Module,
    example: Batch,
    patterns: tuple[tuple[str, ...], tuple[str, ...]],
    kinds: Sequence[Kind],
) -> list[Pair]:
    """The pairs, from shallow to deep.

    Args:
        model: the student.
        teacher: any other model for the same inputs.
        example: inputs that both take.
        patterns: of names of the student's layers and of the teacher's; where there are none, layers are found. Layers that
            are named pair off in the order in which they run; maps that are found pair off by the sizes that both have, if
            there are such; all others by depth.
        kinds: what a layer may give, those that are looked for first in front.

    Raises:
        UserError: E112 a pattern that matches nothing, or no layers of these kinds; E111 as many on one side as not on the
            other.
    """
    models = model, teacher
    sides = [features_of(one, example) for one in models]
    for key, names, features in zip(("layers", "teacher_layers"), patterns, sides, strict=True):
        every_pattern_matches(key, names, features)
    found: tuple[list[Layer], list[Layer]]
    for kind in kinds:
        found = (_layers(models[0], sides[0], patterns[0], kind), _layers(models[1], sides[1], patterns[1], kind))
        if all(found):
            break
    else:
        told = " or ".join(kinds)
        raise UserError(
            "E112", f"student and teacher have no layers that both give {told}", "name `layers` and `teacher_layers`"
        )
    if all(patterns):
        if len(found[0]) != len(found[1]):
            message = (
                f"`layers` name {len(found[0])} of the student's layers, `teacher_layers` {len(found[1])} of the teacher's"
            )
            raise UserError("E111", message, "name as many of the one as of the other, by whole names")
        return [Pair(*both) for both in zip(*found, strict=True)]
    if kind == "maps" and not any(patterns) and (alike := _of_equal_places(*found)):
        return alike
    count = len(found[0]) if patterns[0] else len(found[1]) if patterns[1] else min(map(len, found))
    return [Pair(*both) for both in zip(*(_spread(layers, count) for layers in found), strict=True)]


def head_of(model: nn.Module, example: Batch) -> str:
    """The name of the last linear layer that runs: what it is given is the model's embedding of a sample.

    Raises:
        UserError: E112 when the model has none.
    """
    modules = dict(model.named_modules())
    linear = [name for name in features_of(model, example) if isinstance(modules.get(name), nn.Linear)]
    if not linear:
        raise UserError("E112", f"{type(model).__name__} has no linear layer at its end", "name `layers` and `teacher_layers`")
    return linear[-1]


def embeddings_of(
    model: nn.Module, teacher: nn.Module, example: Batch, patterns: tuple[tuple[str, ...], tuple[str, ...]]
) -> Pair:
    """What stands for a sample on both sides: one layer named, by default what the last linear layer is given.

    Raises:
        UserError: E111 several layers named, E112 as `pairs_of` and `head_of`.
    """
    sides = []
    for key, one, names in zip(("layers", "teacher_layers"), (model, teacher), patterns, strict=True):
        if names:
            features = features_of(one, example)
            every_pattern_matches(key, names, features)
            named = [name for name in features if matches(name, names)]
            if len(named) > 1 and names[0] not in named:
                raise UserError("E111", f"`{key}` name {len(named)} layers, one embedding is compared", "name one layer")
            name = names[0] if names[0] in named else named[0]
            shape = tuple(features[name].shape)
        else:
            name = f"{head_of(one, example)}:input"
            shape = tuple(shape_at(one, example, name))
        sides.append(Layer(name, shape, len(shape) - 1))
    return Pair(*sides)


def shape_at(model: nn.Module, example: Batch, name: str) -> torch.Size:
    """The shape of what a tap takes."""
    from mirabelle.batch import call

    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), Taps(model, [name]) as taps:
            call(model.eval(), example.inputs)
            return taps.taken()[name].shape
    finally:
        for module, mode in training.items():
            module.training = mode


def _layers(model: nn.Module, features: Mapping[str, Tensor], patterns: tuple[str, ...], kind: Kind) -> list[Layer]:
    modules = dict(model.named_modules())
    layers = {
        name: Layer(name, tuple(tensor.shape), _channels(modules[layer_of(name)], tensor))
        for name, tensor in features.items()
        if _is(kind, tensor)
    }
    if patterns:
        exact = [name for name in layers if name in patterns]
        chosen = [name for name in layers if matches(name, patterns)]
        return [layers[name] for name in (exact if len(exact) == len(patterns) else chosen)]
    if kind == "attention":
        return list(layers.values())
    last = list(features)[-1]
    if kind == "tokens":
        return _longest_list(modules, layers)
    ends = {layer.places if kind == "maps" else layer.width: layer for layer in layers.values()}
    return [layer for layer in ends.values() if layer.name != last]


def _is(kind: Kind, tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return False
    if kind == "attention":
        return _is_attention(tensor)
    return _DIMENSIONS.get(tensor.ndim) == kind and not _is_attention(tensor)


def _is_attention(tensor: Tensor) -> bool:
    """(batch, heads, tokens, tokens), every row a distribution."""
    if tensor.ndim != 4 or (tensor < 0).any():  # noqa: PLR2004
        return False
    rows = tensor.float().sum(-1)
    return torch.allclose(rows, torch.ones_like(rows), atol=1e-3)


def _channels(module: nn.Module, tensor: Tensor) -> int:
    return 1 if tensor.ndim > 3 or isinstance(module, _BY_CHANNEL) else tensor.ndim - 1  # noqa: PLR2004


def _longest_list(modules: Mapping[str, nn.Module], layers: Mapping[str, Layer]) -> list[Layer]:
    """The layers of the longest list of modules that all give one shape: a transformer's."""
    lists: list[list[Layer]] = []
    for name, module in modules.items():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            inner = [layers[path] for key in module._modules if (path := f"{name}.{key}" if name else key) in layers]
            if inner and len({layer.shape for layer in inner}) == 1:
                lists.append(inner)
    return max(lists, key=len, default=[])


def _of_equal_places(student: Sequence[Layer], teacher: Sequence[Layer]) -> list[Pair]:
    """Maps of the same sizes, if there are such."""
    theirs = {layer.places: layer for layer in teacher}
    return [Pair(layer, theirs[layer.places]) for layer in student if layer.places in theirs]


def _spread(layers: Sequence[Layer], count: int) -> list[Layer]:
    """So many of the layers, evenly over the depth, the deepest always among them."""
    return [layers[-(-(k + 1) * len(layers) // count) - 1] for k in range(count)]
