"""Pairs of a student's layer and a teacher's layer for feature distillation: named, or chosen by depth and shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError, did_you_mean
from mirabelle.model.replacement import Replacement
from mirabelle.model.state import in_eval_mode
from mirabelle.model.taps import Taps, features_of
from mirabelle.model.watch import layer_of
from mirabelle.objectives.forward import Kind
from mirabelle.task.batch import Batch, call, tensors_of

Patterns = tuple[str, ...]
_KINDS: Mapping[int, Kind] = {2: "vectors", 3: "tokens", 4: "maps", 5: "maps"}  # by number of dimensions
_BY_CHANNEL = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d)  # return (batch, channels, positions)
_BY_TOKEN = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)  # return (batch, tokens, width)
_SEVERAL = 2


@dataclass(frozen=True)
class TappedLayer:
    """A layer, with the shape and the kind of its output for the example batch.

    Args:
        name: "name" for the output of a layer, "name:input" for its input, "name[k]" for its output tensor number k.
        shape: of the tensor, the batch first.
        channels: the dimension that holds the channels: 1 for feature maps, the last one for tokens and vectors.
        kind: "maps", "tokens", "vectors" or "attention".
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
        """The sizes of all dimensions except the batch and the channels."""
        return tuple(size for d, size in enumerate(self.shape) if d not in (0, self.channels))

    def __str__(self) -> str:
        return f'"{self.name}", {self.shape}'


@dataclass(frozen=True)
class Pair:
    """A layer of the student and the layer of the teacher that it is compared with."""

    student: TappedLayer
    teacher: TappedLayer


def pairs_of(
    model: nn.Module, teacher: nn.Module, example: Batch, patterns: tuple[Patterns, Patterns], kinds: Sequence[Kind]
) -> list[Pair]:
    """The pairs of layers to compare, from shallow to deep, or in the order in which they are named.

    Args:
        model: the student.
        teacher: any other model for the same inputs.
        example: inputs for both models.
        patterns: names of the student's layers and of the teacher's layers. A name with "*" selects the outermost layers that
            match. A side without names is chosen automatically: the last layer of every size of feature maps, the longest
            list of layers of a transformer, or the last layer of every width of a multilayer perceptron. Feature maps are
            paired by equal sizes if there are any, the layers of a student that has lost others by name, everything else evenly
            over the depth. Layers that were dropped are left out.
        kinds: the kinds of output that may be compared, in order of preference.

    Raises:
        UserError: E112 if a name matches no layer, or only layers that were dropped, or there are no layers of these kinds;
            E111 if the two sides name different numbers of layers, or if a named layer is of another kind.
    """
    sides = [_Side(one, example) for one in (model, teacher)]
    named = [side.named(key, own) for side, key, own in zip(sides, ("layers", "teacher_layers"), patterns, strict=True)]
    for layer in (*named[0], *named[1]):
        if layer.kind not in kinds:
            message = f"the output of layer {layer} is {layer.kind}, but this term compares {' or '.join(kinds)}"
            raise UserError("E111", message, "name other layers, or use another term")
    if all(patterns):
        if len(named[0]) != len(named[1]):
            message = f"`layers` selects {len(named[0])} layers of the student, `teacher_layers` {len(named[1])} of the teacher"
            raise UserError("E111", message, "select the same number of layers on both sides")
        return [Pair(*both) for both in zip(*named, strict=True)]
    if any(patterns):
        given = named[0] or named[1]
        kind, found = given[0].kind, [one or side.found(given[0].kind) for one, side in zip(named, sides, strict=True)]
        if not all(found):
            raise _no_layers((kind,))
        return [Pair(*both) for both in zip(*(_spread(layers, len(given)) for layers in found), strict=True)]
    kind = _kind_of_both(sides, kinds)
    found = [side.found(kind) for side in sides]
    if kind == "maps" and (alike := _of_equal_places(*found)):
        return alike
    theirs = {layer.name: layer for layer in found[1]}
    if sides[0].dropped and all(layer.name in theirs for layer in found[0]):
        return [Pair(layer, theirs[layer.name]) for layer in found[0]]
    count = min(map(len, found))
    return [Pair(*both) for both in zip(*(_spread(layers, count) for layers in found), strict=True)]


def embeddings_of(model: nn.Module, teacher: nn.Module, example: Batch, patterns: tuple[Patterns, Patterns]) -> Pair:
    """The layers that give the embedding of a sample in student and teacher; by default the input of the last linear layer.

    Args:
        model: the student.
        teacher: any other model for the same inputs.
        example: inputs for both models.
        patterns: at most one name for the student, and one for the teacher: "name" for the output of a layer, "name:input" for
            its input.

    Raises:
        UserError: E111 if several layers are named, or one whose first dimension is not the batch; E112 if a name matches no
            layer, or a model has no linear layer at its end.
    """
    sides = []
    for key, one, names in zip(("layers", "teacher_layers"), (model, teacher), patterns, strict=True):
        if len(names) > 1:
            raise UserError("E111", f"`{key}` names {len(names)} layers, but one embedding is compared", "name one layer")
        name = names[0] if names else f"{head_of(one, example)}:input"
        shape = _shape_at(one, example, name)
        if not shape or shape[0] != len(example):
            raise _not_batch_first(name, shape)
        sides.append(TappedLayer(name, shape, len(shape) - 1, "vectors"))
    return Pair(*sides)


def head_of(model: nn.Module, example: Batch) -> str:
    """The name of the linear layer whose output is the model's output; its input is the model's embedding of a sample.

    Raises:
        UserError: E112 if the model does not end with a linear layer.
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
    """The layers of one model with their outputs for the example batch."""

    def __init__(self, model: nn.Module, example: Batch) -> None:
        self._modules = dict(model.named_modules())
        features = features_of(model, example)
        inputs = {tensor.data_ptr() for tensor in tensors_of(example.inputs)}
        outputs = {tensor.data_ptr() for name, tensor in features.items() if not layer_of(name)}
        self._names = [name for name in features if layer_of(name)]
        self._shapes = {name: tuple(features[name].shape) for name in self._names}
        self._ends = {name for name in self._names if features[name].data_ptr() in inputs | outputs}
        self._tensors = {name: id(features[name]) for name in self._names}
        dropped = {name for name, module in self._modules.items() if isinstance(module, Replacement) and module.drops}
        self.dropped = {name for name in self._names if layer_of(name) in dropped}
        axes = _channel_axes(self._modules, {name: features[name] for name in self._names})
        self._layers = {
            name: TappedLayer(name, self._shapes[name], axes[name], _kind(features[name], axes[name]))
            for name in self._names
            if features[name].is_floating_point() and features[name].ndim in _KINDS and len(features[name]) == len(example)
        }

    def named(self, key: str, patterns: Patterns) -> list[TappedLayer]:
        """The layers that match these patterns, in the order of the patterns."""
        names = [name for position, pattern in enumerate(patterns) for name in self._matching(key, position, pattern)]
        for name in names:
            if name not in self._layers:
                raise _not_batch_first(name, self._shapes[name])
        return [self._layers[name] for name in names]

    def found(self, kind: Kind) -> list[TappedLayer]:
        """The layers of this kind that represent the depths of the model, without the model's inputs and outputs."""
        if kind == "tokens":
            return self._longest_list()
        layers = [layer for name, layer in self._layers.items() if layer.kind == kind and name not in self._ends]
        if kind == "attention":  # several modules may return the same tensor
            return list({self._tensors[layer.name]: layer for layer in reversed(layers)}.values())[::-1]
        ends: dict[object, TappedLayer] = {}
        for layer in layers:
            size = layer.places if kind == "maps" else layer.width
            ends.pop(size, None)  # so that the last layer of a size also has the last position
            ends[size] = layer
        return list(ends.values())

    def _matching(self, key: str, position: int, pattern: str) -> list[str]:
        if pattern in self.dropped:
            raise _dropped(pattern, key, position)
        if pattern in self._shapes:
            return [pattern]
        literal = pattern.replace("[", "[[]")
        found = [name for name in self._names if fnmatchcase(name, literal) and ("[" in name) == ("[" in pattern)]
        outermost = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
        kept = [name for name in outermost if name not in self.dropped]
        if outermost and not kept:
            raise _dropped(pattern, key, position)
        outermost = kept
        if not outermost:
            message = f'pattern "{pattern}" matches no layer of the model'
            raise UserError("E112", message, did_you_mean(pattern, self._names), path=(key, position))
        return outermost

    def _longest_list(self) -> list[TappedLayer]:
        """The longest list of modules of one class whose outputs are tokens of one shape, as in a transformer."""
        lists: list[list[TappedLayer]] = []
        for name, module in self._modules.items():
            if not isinstance(module, (nn.ModuleList, nn.Sequential)):
                continue
            paths = [f"{name}.{key}" if name else key for key in module._modules]
            paths = [path for path in paths if path not in self.dropped]
            if len({type(self._modules[path]) for path in paths}) == 1:
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
    """The dimension that contains the channels of each tensor.

    A tensor of three dimensions is (batch, channels, positions) or (batch, tokens, width); a module whose class does not decide
    it takes the layout of the layer before it.
    """
    found, last = {}, -1
    known: dict[int, int] = {}
    for name, tensor in features.items():
        module = modules[layer_of(name)]
        if tensor.ndim == 3:  # noqa: PLR2004
            axis = (
                1 if isinstance(module, _BY_CHANNEL) else -1 if isinstance(module, _BY_TOKEN) else known.get(id(tensor), last)
            )
            last = known[id(tensor)] = axis
            found[name] = axis % tensor.ndim
        else:
            found[name] = 1 if tensor.ndim > 3 else tensor.ndim - 1  # noqa: PLR2004
    return found


def _kind_of_both(sides: Iterable[_Side], kinds: Sequence[Kind]) -> Kind:
    """The first kind of which both models have layers.

    A single feature map next to a list of token layers is the patch embedding of a transformer: then the kind is "tokens".
    """
    counts = {kind: min(len(side.found(kind)) for side in sides) for kind in kinds}
    if counts.get("maps") == 1 and counts.get("tokens", 0) >= _SEVERAL:
        return "tokens"
    found = next((kind for kind in kinds if counts[kind]), None)
    if found is None:
        raise _no_layers(kinds)
    return found


def _of_equal_places(student: Sequence[TappedLayer], teacher: Sequence[TappedLayer]) -> list[Pair]:
    """The pairs of feature maps of equal size; empty if there are none."""
    theirs = {layer.places: layer for layer in teacher}
    return [Pair(layer, theirs[layer.places]) for layer in student if layer.places in theirs]


def _spread(layers: Sequence[TappedLayer], count: int) -> list[TappedLayer]:
    """`count` of the layers, evenly over the depth; the deepest layer is always included."""
    return [layers[-(-(k + 1) * len(layers) // count) - 1] for k in range(count)]


def _shape_at(model: nn.Module, example: Batch, name: str) -> tuple[int, ...]:
    """The shape of a tensor inside the model: "name" is the output of a layer, "name:input" its input."""
    with torch.no_grad(), in_eval_mode(model), Taps(model, [name]) as taps:
        call(model, example.inputs)
        return tuple(taps.taken()[name].shape)


def _no_layers(kinds: Sequence[Kind]) -> UserError:
    message = f"student and teacher do not both have layers whose outputs are {' or '.join(kinds)}"
    return UserError("E112", message, "name `layers` and `teacher_layers`")


def _dropped(pattern: str, key: str, position: int) -> UserError:
    message = f'"{pattern}" is a layer that an earlier step has dropped: it returns its input'
    return UserError("E112", message, "name a layer that is left", path=(key, position))


def _not_batch_first(name: str, shape: tuple[int, ...]) -> UserError:
    message = f'the output of layer "{name}", {shape}, does not have the samples of the batch in its first dimension'
    return UserError("E111", message, "name a layer with a floating-point output that has the batch first")
