"""Weights that several layers share: all of them read one table of codes, or the weight stays in floating point."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.model.state import memory_of
from mirabelle.model.ties import Tie, all_names, named_tensors, tie
from mirabelle.model.turned_linear import turned_linear
from mirabelle.quantize.dense_layers import WEIGHTED
from mirabelle.records.patterns import matches

_PLAIN = {"padding_mode": "zeros", "max_norm": None}


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer has settings with a quantized form; an embedding with a `max_norm` changes while it is read."""
    return all(getattr(layer, key, value) == value for key, value in _PLAIN.items())


@dataclass(frozen=True)
class Selection:
    """The layers that a step quantizes, and those that share their weights.

    Args:
        layers: by name, in the order of the model; each becomes a layer of the step's class.
        readers: by name; layers of other classes that have the weight of one of `layers`. They read the same codes, and compute
            in floating point.
        groups: the names of the layers and readers of each weight that has several.
    """

    layers: Mapping[str, nn.Module]
    readers: Mapping[str, nn.Module]
    groups: tuple[tuple[str, ...], ...]

    def group_of(self, name: str) -> tuple[str, ...]:
        """The names of the layers that have the weight of this one, itself included."""
        return next((group for group in self.groups if name in group), (name,))

    def has_readers(self, name: str) -> bool:
        """Whether a layer shares its weight with one that computes in floating point."""
        return any(other in self.readers for other in self.group_of(name))

    def without(self, names: Collection[str]) -> Selection:
        """The part without some layers, of which those that share a weight are all named."""
        layers = {name: layer for name, layer in self.layers.items() if name not in names}
        return self.running(layers)

    def running(self, ran: Collection[str]) -> Selection:
        """The part that runs: a layer that never does reads the codes of one that does, and is left out without one."""
        layers = {name: layer for name, layer in self.layers.items() if name in ran}
        groups = tuple(group for group in self.groups if any(name in layers for name in group))
        known = {**self.layers, **self.readers}
        readers = {name: known[name] for group in groups for name in group if name not in layers}
        return Selection(layers, readers, groups)

    def largest(self, values: Mapping[str, Tensor | None], name: str) -> Tensor | None:
        """The largest of the values, (n,), of the layers that have the weight of this one; None if none has a value."""
        found = [value for other in self.group_of(name) if (value := values.get(other)) is not None]
        return torch.stack(found).amax(0) if found else None


def with_ties(
    model: nn.Module, chosen: Mapping[str, nn.Module], kinds: tuple[type[nn.Module], ...], exclude: tuple[str, ...]
) -> Selection:
    """Add the layers that share a weight with a chosen one, and leave out those that share it with what cannot be quantized.

    Args:
        model: the model.
        chosen: layers with plain settings, by name.
        kinds: classes of layers that the step quantizes.
        exclude: patterns of names of modules that stay in floating point.

    Raises:
        UserError: E112 if no layer is left.
    """
    modules, holders = dict(model.named_modules()), _holders(model)
    layers = set(chosen)
    readers: dict[str, nn.Module] = {}
    groups: dict[tuple[str, ...], None] = {}
    left = {name: why for name in chosen if (why := _why_left(modules, holders[memory_of(_weight(modules[name]))], exclude))}
    for name in chosen.keys() - left.keys():
        found = tuple(other for other, _ in holders[memory_of(_weight(modules[name]))])
        if len(found) > 1:
            groups[found] = None
            layers |= {other for other in found if type(modules[other]) in kinds}
            readers |= {other: modules[other] for other in found if type(modules[other]) not in kinds}
    layers -= left.keys()
    if not layers:
        name, why = next(iter(left.items()))
        message = f'no layer is left to quantize: "{name}" stays in floating point, since {why}'
        raise UserError("E112", message, "widen `include`, or shorten `exclude`")
    return Selection({name: module for name, module in modules.items() if name in layers}, readers, tuple(groups))


def check_finite(selection: Selection) -> None:
    """Check that all weights of a selection are finite numbers of float32, as codebooks are computed with.

    Raises:
        UserError: E121 if one is not.
    """
    for name, layer in {**selection.layers, **selection.readers}.items():
        if (kind := _weight(layer).dtype) != torch.float32:
            message = f'the weight of layer "{name}" is {str(kind).removeprefix("torch.")}, and codebooks compute in float32'
            raise UserError("E121", message, "convert the model with model.float()")
        if not bool(_weight(layer).isfinite().all()):
            raise UserError("E121", f'the weight of layer "{name}" is not finite', "give weights of a trained model")


def left_with_ties(model: nn.Module, kinds: tuple[type[nn.Module], ...], exclude: tuple[str, ...]) -> dict[str, str]:
    """Name of each layer of these classes whose weight has another holder that cannot be quantized -> why, in words."""
    modules, holders = dict(model.named_modules()), _holders(model)
    layers = [name for name, module in modules.items() if type(module) in kinds and isinstance(module.weight, Tensor)]
    found = {name: _why_left(modules, holders[memory_of(_weight(modules[name]))], exclude) for name in layers}
    return {name: why for name, why in found.items() if why}


def tie_codes(model: nn.Module, names: Mapping[str, Sequence[str]], selection: Selection) -> nn.Module:
    """Let layers that shared a weight or a bias share its codes, scales and biases, in place.

    Args:
        model: with quantized layers.
        names: first name of each tensor before the step -> all its names.
        selection: of the step.
    """
    known = named_tensors(model)
    for group in selection.groups:
        for key in ("codes", "scale", "zero_point", "values"):
            if all(f"{name}.{key}" in known for name in group):
                model = tie(model, [f"{name}.{key}" for name in group])
    for same in names.values():
        kept = [name for name in same if name in known]
        if len({memory_of(known[name]) for name in kept}) > 1:
            model = tie(model, sorted(kept, key=lambda name: not isinstance(known[name], nn.Parameter)))
    return model


def groups_of_codes(model: nn.Module, given: nn.Module) -> list[tuple[str, ...]]:
    """The names of the layers that read one table of codes, for each table that a step tied; `given` is the model before it."""
    edits = architecture_of(model).edits[len(architecture_of(given).edits) :]
    tied = [edit.tensors for edit in edits if isinstance(edit, Tie) and edit.tensors[0].endswith(".codes")]
    return [tuple(name.removesuffix(".codes") for name in names) for names in tied]


def separated(model: nn.Module, given: nn.Module) -> list[str]:
    """Sentences on biases that several layers shared and that are now stored once for each; `given` is the model before it."""
    known, found = named_tensors(model), []
    for names in all_names(given).values():
        owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in names if not name.endswith("weight")}
        if len({*map(id, owners.values())}) > 1 and any(name not in known for name in owners):
            found.append(f"{' and '.join(names)} are no longer one tensor: a static layer stores its bias in steps of its own")
    return found


def _holders(model: nn.Module) -> dict[Hashable, list[tuple[str, str]]]:
    """Memory of each tensor -> (name of a module, name in the module) of all that hold it."""
    found: dict[Hashable, list[tuple[str, str]]] = defaultdict(list)
    for name, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                found[memory_of(tensor)].append((name, key))
    return found


def _why_left(modules: Mapping[str, nn.Module], held: Sequence[tuple[str, str]], exclude: tuple[str, ...]) -> str:
    """Why a weight that these modules hold cannot be quantized, in words; "" if it can, or has one holder."""
    if len(held) == 1:
        return ""
    names = [f"{name}.{key}".lstrip(".") for name, key in held]
    shapes = {getattr(modules[name], key).shape for name, key in held}
    one = f"{' and '.join(names)} are one tensor, and "
    for (holder, key), name in zip(held, names, strict=True):
        module = modules[holder]
        if matches(holder, exclude):
            return f"{one}{holder} is excluded"
        if key != "weight" or type(module) not in (*WEIGHTED, *turned_linear()) or not is_plain(module):
            return f"{one}{name}, of {type(module).__name__}, has no quantized form"
    turned = {isinstance(modules[holder], turned_linear()) for holder, _ in held}
    return f"{one}one of them is transposed" if len(shapes) > 1 or len(turned) > 1 else ""


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor), "layers of these classes have a weight"
    return weight
