"""Weights that a module computes before it uses them (weight norm, spectral norm, masks), and the edit that makes them plain.

Torch has two kinds: parametrizations (`torch.nn.utils.parametrize`), and hooks that set an attribute before each call. A weight
that is cut, ranked or quantized must be the one that is used, so steps that do this first make computed weights plain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of, attach
from mirabelle.model.edits import Edit, damaged
from mirabelle.model.state import copied, in_eval_mode
from mirabelle.model.ties import tied_by_memory

if TYPE_CHECKING:
    from mirabelle.run.run import Run

_WITH_WEIGHT = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Fold(Edit):
    """Makes weights that are computed from other tensors, for example by weight norm, plain parameters.

    Args:
        tensors: names of the weights, such as "conv.weight".
    """

    tensors: tuple[str, ...]

    def replay(self, model: nn.Module) -> nn.Module:
        known = {one.name: one for one in _computed(model)}
        for name in self.tensors:
            if name not in known:
                message = f'architecture.json folds "{name}", which the model does not compute from other tensors'
                raise UserError("E140", message, "give the dense module from which the model was made")
        with in_eval_mode(model), torch.no_grad():
            _fold([known[name] for name in self.tensors])
        return model

    def to_data(self) -> dict[str, Any]:
        return {"tensors": list(self.tensors)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Fold:
        names = data.get("tensors")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise damaged('a folding lacks "tensors"')
        return Fold(tuple(names))

    def replaces(self, tensor: str) -> bool:
        return any(tensor.startswith((f"{name}_", _originals(name))) for name in self.tensors)


def with_plain_weights(model: nn.Module, run: Run | None = None) -> nn.Module:
    """The model itself, or a copy in which every computed weight is a plain parameter, with the edit recorded.

    In the copy, parameters that are the same numbers in memory are one parameter, too (see `copied`).

    The value is that of eval mode. Zeros of `torch.nn.utils.prune` are kept in later trainings, like those of `prune.Weights`.

    Args:
        model: is not changed.
        run: records the names of these weights; None records nothing.

    Raises:
        UserError: E121 for a weight that a hook computes in a way that is not known, or that differs from call to call.
    """
    if not _computed(model) and _hidden(model) is None:
        return copied(model) if tied_by_memory(model) else model
    folded = copied(model)
    weights = _computed(folded)
    pruned = [one.name for one in weights if one.masked]
    edit = Fold(tuple(one.name for one in weights))
    with in_eval_mode(folded), torch.no_grad():
        for one in weights:
            if not torch.equal(one.value(), one.value()):
                message = f'"{one.name}" differs from call to call, so there is no weight to compress'
                raise UserError("E121", message, "replace its parametrization by a plain weight first")
        _fold(weights)
    hidden = _hidden(folded)
    if hidden is not None:
        message = f'the weight of "{hidden}" is set by a hook, in a way that is not known'
        raise UserError("E121", message, "register it with torch.nn.utils.parametrize, or make it a plain parameter")
    if run is not None and weights:
        run.event("folded", tensors=list(edit.tensors))
    attach(folded, architecture_of(model).with_edit(edit).with_pruned(pruned) if weights else architecture_of(model))
    return folded


@dataclass(frozen=True)
class _Computed:
    """A weight that a module computes.

    Args:
        name: in the model.
        module: that owns it.
        key: its name in the module.
        sources: the tensors it is computed from.
        kinds: classes that compute it.
        remove: makes it a plain parameter of the module.
        compute: its value, for hooks; None for parametrizations.
    """

    name: str
    module: nn.Module
    key: str
    sources: tuple[Tensor, ...]
    kinds: tuple[type, ...]
    remove: Callable[[], object]
    compute: Callable[[], Tensor] | None = None

    @property
    def masked(self) -> bool:
        """Whether it is a weight with a mask of `torch.nn.utils.prune`."""
        return any(issubclass(kind, prune.BasePruningMethod) for kind in self.kinds)

    def value(self) -> Tensor:
        """The weight as the module uses it."""
        found: Tensor = getattr(self.module, self.key) if self.compute is None else self.compute()
        return found.detach().clone()


def _computed(model: nn.Module) -> list[_Computed]:
    """The weights that modules compute in ways that are known."""
    return [one for path, module in model.named_modules() if ".parametrizations." not in path for one in _of(path, module)]


def _of(path: str, module: nn.Module) -> Iterator[_Computed]:
    def named(key: str) -> str:
        return f"{path}.{key}".lstrip(".")

    parametrized: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
    for key, steps in parametrized.items():
        sources = (*steps.parameters(recurse=False), *steps.buffers(recurse=False))
        remove: Callable[[], object] = partial(_remove_parametrization, module, key)
        yield _Computed(named(key), module, key, sources, tuple(map(type, steps)), remove)
    for hook in module._forward_pre_hooks.values():
        found = next((of_kind(hook, module) for kind, of_kind in _HOOKS.items() if isinstance(hook, kind)), None)
        if found is not None:
            key, remove, compute = found
            parts = {**module._parameters, **module._buffers}
            sources = tuple(part for name, part in parts.items() if name.startswith(f"{key}_") and part is not None)
            yield _Computed(named(key), module, key, sources, (type(hook),), remove, compute)


_HOOKS: dict[type, Callable[[Any, nn.Module], tuple[str, Callable[[], object], Callable[[], Tensor]]]] = {
    WeightNorm: lambda hook, module: (
        hook.name,
        partial(nn.utils.remove_weight_norm, module, hook.name),
        partial(hook.compute_weight, module),
    ),
    SpectralNorm: lambda hook, module: (
        hook.name,
        partial(_remove_spectral_norm, module, hook.name),
        partial(hook.compute_weight, module, do_power_iteration=False),
    ),
    prune.BasePruningMethod: lambda hook, module: (
        hook._tensor_name,
        partial(prune.remove, module, hook._tensor_name),
        partial(hook.apply_mask, module),
    ),
}


def _fold(weights: list[_Computed]) -> None:
    """Make computed weights plain, in place. Weights that are computed from the same tensors in the same way stay shared."""
    values = [one.value() for one in weights]
    known: dict[object, list[nn.Parameter]] = {}
    for one, value in zip(weights, values, strict=True):
        trains = any(source.requires_grad for source in one.sources)
        own = (*map(id, one.sources), one.kinds)
        same = next((earlier for earlier in known.get(own, []) if torch.equal(earlier, value)), None)
        plain = nn.Parameter(value, requires_grad=trains) if same is None else same
        known.setdefault(own, []).append(plain)
        is_buffer = not any(isinstance(source, nn.Parameter) for source in one.sources)
        one.remove()
        if is_buffer:
            one.module.register_buffer(one.key, plain.detach())
        else:
            setattr(one.module, one.key, plain)


def _remove_parametrization(module: nn.Module, key: str) -> None:
    """Remove a parametrization from this module alone: torch lets copies share a class, and would break the others."""
    parametrized: Any = module.parametrizations
    steps = parametrized[key]
    own = type(module)
    module.__class__ = type(own.__name__, own.__bases__, dict(own.__dict__))
    if steps.is_tensor and isinstance(steps.original, nn.Parameter):
        steps.original = nn.Parameter(steps.original.detach().clone())  # torch writes into it, and it may be shared
    parametrize.remove_parametrizations(module, key, leave_parametrized=True)


def _remove_spectral_norm(module: nn.Module, key: str) -> None:
    """Remove a spectral norm that is a hook, with its hook for loading, which torch forgets."""
    nn.utils.remove_spectral_norm(module, key)
    for number, hook in list(module._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[number]


def _originals(name: str) -> str:
    """The prefix of the tensors of which a parametrization computes the tensor of this name."""
    module, _, key = name.rpartition(".")
    return f"{module}.parametrizations.{key}.".lstrip(".")


def _hidden(model: nn.Module) -> str | None:
    """The name of a layer whose weight is neither a parameter nor computed in a way that is known."""
    known = {one.module for one in _computed(model)}
    for name, module in model.named_modules():
        if isinstance(module, _WITH_WEIGHT) and module not in known and isinstance(vars(module).get("weight"), Tensor):
            return str(name)
    return None
