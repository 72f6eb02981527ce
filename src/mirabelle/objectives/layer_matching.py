"""Which layer of the student looks at which layer of the teacher: named, or found by depth and shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError, did_you_mean
from mirabelle.model.state import in_eval_mode
from mirabelle.model.taps import Taps, features_of
from mirabelle.model.watch import layer_of
from mirabelle.objectives.forward import Kind
from mirabelle.task.batch import Batch, call, tensors_of

Patterns = tuple[str, ...]
_KINDS: Mapping[int, Kind] = {2: "vectors", 3: "tokens", 4: "maps", 5: "maps"}  # by dimensions
_BY_CHANNEL = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d)  # give (batch, channels, places)
_BY_TOKEN = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)  # give (batch, tokens, width)
_SEVERAL = 2


@dataclass(frozen=True)
class TappedLayer:
    """A layer as a tap names it, with what it gives for the example.

    Args:
        name: of the tap.
        shape: of the tensor.
        channels: the dimension of its width: 1 of maps, the last of tokens and vectors.
        kind: of thing that it gives.
    """

    name: str
    shape: tuple[int, ...]
    channels: int
    kind: Kind

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

    student: TappedLayer
    teacher: TappedLayer


def pairs_of(
    model: nn.Module, teacher: nn.Module, example: Batch, patterns: tuple[Patterns, Patterns], kinds: Sequence[Kind]
) -> list[Pair]:
    """The pairs, from shallow to deep, or in the order in which they are named.

    Args:
        model: the student.
        teacher: any other model for the same inputs.
        example: inputs that both take.
        patterns: names of the student's layers and of the teacher's, whole or with "*", which takes the outermost layers that
            match. Where there are none, layers are found: the last of every size of maps, the longest list of layers of a
            transformer, or the last of every width of a perceptron; maps pair off by the sizes that both have, if there are
            such, and all else evenly by depth.
        kinds: what a layer may give, those that are looked for first in front.

    Raises:
        UserError: E112 a name that matches nothing, or no layers of these kinds; E111 as many on one side as not on the other,
            or a layer that gives something else.
    """
    sides = [_Side(one, example) for one in (model, teacher)]
    named = [side.named(key, own) for side, key, own in zip(sides, ("layers", "teacher_layers"), patterns, strict=True)]
    for layer in (*named[0], *named[1]):
        if layer.kind not in kinds:
            message = f"layer {layer} gives {layer.kind}, and {' or '.join(kinds)} are compared"
            raise UserError("E111", message, "name other layers, or another term")
    if all(patterns):
        if len(named[0]) != len(named[1]):
            message = (
                f"`layers` name {len(named[0])} of the student's layers, `teacher_layers` {len(named[1])} of the teacher's"
            )
            raise UserError("E111", message, "name as many of the one as of the other")
        return [Pair(*both) for both in zip(*named, strict=True)]
    if any(patterns):
        given = named[0] or named[1]
        kind, found = given[0].kind, [one or side.found(given[0].kind) for one, side in zip(named, sides, strict=True)]
        if not all(found):
            raise _nothing((kind,))
        return [Pair(*both) for both in zip(*(_spread(layers, len(given)) for layers in found), strict=True)]
    kind = _kind_of_both(sides, kinds)
    found = [side.found(kind) for side in sides]
    if kind == "maps" and (alike := _of_equal_places(*found)):
        return alike
    count = min(map(len, found))
    return [Pair(*both) for both in zip(*(_spread(layers, count) for layers in found), strict=True)]


def embeddings_of(model: nn.Module, teacher: nn.Module, example: Batch, patterns: tuple[Patterns, Patterns]) -> Pair:
    """What stands for a sample on both sides: one layer named, by default what the last linear layer is given.

    Raises:
        UserError: E111 several layers named, or one that does not keep samples apart; E112 as `head_of`, or a name that matches
            nothing.
    """
    sides = []
    for key, one, names in zip(("layers", "teacher_layers"), (model, teacher), patterns, strict=True):
        if len(names) > 1:
            raise UserError("E111", f"`{key}` name {len(names)} layers, one embedding is compared", "name one layer")
        name = names[0] if names else f"{head_of(one, example)}:input"
        shape = _shape_at(one, example, name)
        if not shape or shape[0] != len(example):
            raise _no_samples(name, shape)
        sides.append(TappedLayer(name, shape, len(shape) - 1, "vectors"))
    return Pair(*sides)


def head_of(model: nn.Module, example: Batch) -> str:
    """The name of the linear layer whose result is the model's: what it is given is the model's embedding of a sample.

    Raises:
        UserError: E112 when the model has none.
    """
    modules, features = dict(model.named_modules()), features_of(model, example)
    outputs = {tensor.data_ptr() for name, tensor in features.items() if not layer_of(name)}
    heads = [
        name
        for name, tensor in features.items()
        if name and isinstance(modules.get(name), nn.Linear) and tensor.data_ptr() in outputs
    ]
    if not heads:
        message = f"{type(model).__name__} does not end with a linear layer"
        raise UserError("E112", message, "name `layers` and `teacher_layers`")
    return heads[-1]


class _Side:
    """What the layers of one model give for the example."""

    def __init__(self, model: nn.Module, example: Batch) -> None:
        self._modules = dict(model.named_modules())
        features = features_of(model, example)
        inputs = {tensor.data_ptr() for tensor in tensors_of(example.inputs)}
        outputs = {tensor.data_ptr() for name, tensor in features.items() if not layer_of(name)}
        self._names = [name for name in features if layer_of(name)]
        self._shapes = {name: tuple(features[name].shape) for name in self._names}
        self._ends = {name for name in self._names if features[name].data_ptr() in inputs | outputs}
        self._tensors = {name: id(features[name]) for name in self._names}
        axes = _channel_axes(self._modules, {name: features[name] for name in self._names})
        self._layers = {
            name: TappedLayer(name, self._shapes[name], axes[name], _kind(features[name], axes[name]))
            for name in self._names
            if features[name].is_floating_point() and features[name].ndim in _KINDS and len(features[name]) == len(example)
        }

    def named(self, key: str, patterns: Patterns) -> list[TappedLayer]:
        """The layers of these names, in the order in which they are named."""
        names = [name for position, pattern in enumerate(patterns) for name in self._matching(key, position, pattern)]
        for name in names:
            if name not in self._layers:
                raise _no_samples(name, self._shapes[name])
        return [self._layers[name] for name in names]

    def found(self, kind: Kind) -> list[TappedLayer]:
        """The layers that stand for the depths of the model, but its inputs and outputs."""
        if kind == "tokens":
            return self._longest_list()
        layers = [layer for name, layer in self._layers.items() if layer.kind == kind and name not in self._ends]
        if kind == "attention":  # which several modules may hand on
            return list({self._tensors[layer.name]: layer for layer in reversed(layers)}.values())[::-1]
        ends: dict[object, TappedLayer] = {}
        for layer in layers:
            size = layer.places if kind == "maps" else layer.width
            ends.pop(size, None)  # the last of a size counts, and its place
            ends[size] = layer
        return list(ends.values())

    def _matching(self, key: str, position: int, pattern: str) -> list[str]:
        if pattern in self._shapes:
            return [pattern]
        literal = pattern.replace("[", "[[]")
        found = [name for name in self._names if fnmatchcase(name, literal) and ("[" in name) == ("[" in pattern)]
        outermost = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
        if not outermost:
            message = f'pattern "{pattern}" matches nothing in the model'
            raise UserError("E112", message, did_you_mean(pattern, self._names), path=(key, position))
        return outermost

    def _longest_list(self) -> list[TappedLayer]:
        """The layers of the longest list of modules of one kind that all give tokens of one shape: a transformer's."""
        lists: list[list[TappedLayer]] = []
        for name, module in self._modules.items():
            kinds = {type(child) for child in module.children()}
            if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(kinds) == 1:
                paths = [f"{name}.{key}" if name else key for key in module._modules]
                inner = [self._layers[path] for path in paths if path in self._layers]
                if inner and len({layer.shape for layer in inner}) == 1 and inner[0].kind == "tokens":
                    lists.append(inner)
        return max(lists, key=len, default=[])


def _kind(tensor: Tensor, channels: int) -> Kind:
    if tensor.ndim == 4 and not (tensor < 0).any():  # noqa: PLR2004 (batch, heads, tokens, tokens: every row a distribution)
        rows = tensor.float().sum(-1)
        if torch.allclose(rows, torch.ones_like(rows), atol=1e-3):
            return "attention"
    return "maps" if tensor.ndim == 3 and channels == 1 else _KINDS[tensor.ndim]  # noqa: PLR2004


def _channel_axes(modules: Mapping[str, nn.Module], features: Mapping[str, Tensor]) -> dict[str, int]:
    """The dimension of each tensor's width; of three dimensions it is that of the layer before which tells it."""
    found, last = {}, -1
    known: dict[int, int] = {}
    for name, tensor in features.items():
        module = modules[layer_of(name)]
        if tensor.ndim == 3:  # noqa: PLR2004
            told = (
                1 if isinstance(module, _BY_CHANNEL) else -1 if isinstance(module, _BY_TOKEN) else known.get(id(tensor), last)
            )
            last = known[id(tensor)] = told
            found[name] = told % tensor.ndim
        else:
            found[name] = 1 if tensor.ndim > 3 else tensor.ndim - 1  # noqa: PLR2004
    return found


def _kind_of_both(sides: Iterable[_Side], kinds: Sequence[Kind]) -> Kind:
    """The first kind of which both have layers; a single map beside a list of layers is a transformer's entrance."""
    counts = {kind: min(len(side.found(kind)) for side in sides) for kind in kinds}
    if counts.get("maps") == 1 and counts.get("tokens", 0) >= _SEVERAL:
        return "tokens"
    found = next((kind for kind in kinds if counts[kind]), None)
    if found is None:
        raise _nothing(kinds)
    return found


def _of_equal_places(student: Sequence[TappedLayer], teacher: Sequence[TappedLayer]) -> list[Pair]:
    """Maps of the same sizes, if there are such."""
    theirs = {layer.places: layer for layer in teacher}
    return [Pair(layer, theirs[layer.places]) for layer in student if layer.places in theirs]


def _spread(layers: Sequence[TappedLayer], count: int) -> list[TappedLayer]:
    """So many of the layers, evenly over the depth, the deepest always among them."""
    return [layers[-(-(k + 1) * len(layers) // count) - 1] for k in range(count)]


def _shape_at(model: nn.Module, example: Batch, name: str) -> tuple[int, ...]:
    """The shape of what a tap takes."""
    with torch.no_grad(), in_eval_mode(model), Taps(model, [name]) as taps:
        call(model, example.inputs)
        return tuple(taps.taken()[name].shape)


def _nothing(kinds: Sequence[Kind]) -> UserError:
    message = f"student and teacher have no layers that both give {' or '.join(kinds)}"
    return UserError("E112", message, "name `layers` and `teacher_layers`")


def _no_samples(name: str, shape: tuple[int, ...]) -> UserError:
    message = f'layer "{name}" gives {shape}, which does not hold the samples of the batch in its first dimension'
    return UserError("E111", message, "name a layer that does, in floating point")
