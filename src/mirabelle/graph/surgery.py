"""Cuts a module: slices its tensors, sets the width attributes that its code reads, and compares the result with the program.

The module itself is returned only if it computes the same as the cut program with random weights. If its code contains literal
widths, the rewritten program replaces it, and the reason is recorded.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mirabelle.errors import UserError
from mirabelle.graph.call import Call, sizes_of, value_of
from mirabelle.graph.example_signature import Example, ExampleSignature
from mirabelle.graph.flow import Flow, Kept
from mirabelle.graph.groups import axes_of_tensors
from mirabelle.graph.interpret import kept_without, run_cut, sliced
from mirabelle.graph.rewrite import Rewrite
from mirabelle.graph.rewritten import Rewritten
from mirabelle.graph.trace import Program, name_in_model
from mirabelle.model.architecture import architecture_of, attach
from mirabelle.model.edits import Cut, set_attributes, slice_tensors, slices_in_text
from mirabelle.model.state import copied
from mirabelle.model.value_names import keep_names
from mirabelle.numerics.draws import generator_from, global_draws

_SAME = 1e-6  # largest relative difference between the same operators on the same numbers
# Larger differences, up to _ROUNDING, are accepted if they are below _TIMES the effect of rounding in the full model.
_ROUNDING, _TIMES = 1e-4, 10.0
_SCALES = 1.0, 0.25  # of random weights: with the smaller one, a final sigmoid does not saturate
Attributes: TypeAlias = dict[str, dict[str, Any]]


class _DoesNotFollowError(Exception):
    """A module does not compute the same as the cut program; the message says how they differ."""


def cut(model: nn.Module, program: Program, flow: Flow, kept: Kept, example: Example) -> nn.Module:
    """A copy of the model without the removed units, with a record of how to repeat the cut on a dense model.

    Args:
        model: the traced model.
        program: of the model.
        flow: of the program.
        kept: units that are kept.
        example: inputs of the trace, positional and by name.

    Returns:
        An ordinary module: the model's own if its code works with the new widths, otherwise the rewritten program.

    Raises:
        UserError: E121 if neither computes the correct outputs on the example with random weights.
    """
    indices = kept_indices(program, flow, kept)
    attributes = _merged(_by_class(model, program, flow, kept, indices), _by_width(model, flow, kept))
    smaller, edit = copied(model), Cut.of(indices, attributes)
    slice_tensors(smaller, indices)
    set_attributes(smaller, attributes)
    proof = _Proof(model, program, flow, example)
    try:
        proof.check(smaller, kept)
    except _DoesNotFollowError as reason:
        smaller = Rewritten(program, flow, kept)
        keep_names(smaller, model)
        try:
            proof.check(model, proof.whole)
            proof.check(smaller, kept)
        except _DoesNotFollowError as error:
            message = f"neither the model's code nor its rewritten program works with the new widths: {error}"
            raise UserError("E121", message, "list the affected layers in `exclude`, or use prune.Weights") from error
        rewritten = Rewrite(ExampleSignature.of(example).to_data(), str(reason), slices_in_text(indices))
        attach(smaller, architecture_of(model).with_edit(rewritten))
        return smaller
    attach(smaller, architecture_of(model).with_edit(edit))
    return smaller


def kept_indices(program: Program, flow: Flow, kept: Kept) -> dict[str, dict[int, list[int]]]:
    """For each tensor that loses elements: dimension -> indices that are kept."""
    indices: dict[str, dict[int, list[int]]] = {}
    for name, axes in axes_of_tensors(program, flow).items():
        for dimension, (axis, size) in enumerate(axes):
            stays = kept.of(axis, size)
            if not stays.all():
                indices.setdefault(name, {})[dimension] = np.flatnonzero(stays).tolist()
    return indices


def _by_class(
    model: nn.Module, program: Program, flow: Flow, kept: Kept, indices: Mapping[str, Mapping[int, list[int]]]
) -> Attributes:
    """New values of the width attributes of torch's own modules, computed from the new shapes of their tensors."""
    groups = _groups_of_convolutions(program, flow, kept)
    attributes: Attributes = {}
    touched = {other.rpartition(".")[0] for name in indices for other in program.names.get(name, (name,))}
    shapes = {
        other: tuple(len(indices.get(name, {}).get(d, range(size))) for d, size in enumerate(program.tensors[name].shape))
        for name, names in program.names.items()
        if name in program.tensors
        for other in names
    }
    for name, module in model.named_modules():
        own = {key: shapes[path] for key in _TENSORS if (path := f"{name}.{key}" if name else key) in shapes}
        values = _widths(module, own, groups.get(name))
        if values and (name in touched or name in groups):
            attributes[name] = {key: value for key, value in values.items() if getattr(module, key) != value}
    return {name: values for name, values in attributes.items() if values}


Shapes = Mapping[str, tuple[int, ...]]


def _of_convolution(module: Any, shapes: Shapes, groups: int) -> dict[str, Any]:
    one, other = shapes["weight"][:2]
    out, into = (other * groups, one) if module.transposed else (one, other * groups)
    return {"out_channels": out, "in_channels": into, "groups": groups}


def _of_recurrent(module: Any, shapes: Shapes) -> dict[str, Any]:
    gates = module.weight_hh_l0.shape[0] // module.hidden_size
    widths = {"hidden_size": shapes["weight_hh_l0"][0] // gates, "input_size": shapes["weight_ih_l0"][1]}
    return {**widths, "proj_size": shapes["weight_hh_l0"][1]} if module.proj_size else widths


_TENSORS = ("weight", "running_mean", "weight_ih_l0", "weight_hh_l0")
_WIDTHS: tuple[
    tuple[type | tuple[type, ...], str, Callable[[Any, Shapes, int], dict[str, Any]]], ...
] = (  # class, a tensor that it must have, its width attributes
    (nn.Linear, "weight", lambda _, shapes, __: dict(zip(("out_features", "in_features"), shapes["weight"], strict=True))),
    (nn.modules.conv._ConvNd, "weight", _of_convolution),
    (nn.modules.batchnorm._NormBase, "weight", lambda _, shapes, __: {"num_features": shapes["weight"][0]}),
    (nn.modules.batchnorm._NormBase, "running_mean", lambda _, shapes, __: {"num_features": shapes["running_mean"][0]}),
    ((nn.Embedding, nn.EmbeddingBag), "weight", lambda _, shapes, __: {"embedding_dim": shapes["weight"][1]}),
    (
        nn.Bilinear,
        "weight",
        lambda _, shapes, __: dict(zip(("out_features", "in1_features", "in2_features"), shapes["weight"], strict=True)),
    ),
    (nn.LayerNorm, "weight", lambda _, shapes, __: {"normalized_shape": shapes["weight"]}),
    (nn.RMSNorm, "weight", lambda _, shapes, __: {"normalized_shape": shapes["weight"]}),
    (nn.GroupNorm, "weight", lambda _, shapes, groups: {"num_channels": shapes["weight"][0], "num_groups": groups}),
    (nn.PReLU, "weight", lambda _, shapes, __: {"num_parameters": shapes["weight"][0]}),
    (nn.RNNBase, "weight_hh_l0", lambda module, shapes, __: _of_recurrent(module, shapes)),
)


def _widths(module: nn.Module, shapes: Shapes, groups: int | None) -> dict[str, Any]:
    before = int(getattr(module, "groups", 0) or getattr(module, "num_groups", 1))
    for cls, needed, widths in _WIDTHS:
        if isinstance(module, cls) and needed in shapes:
            return widths(module, shapes, groups or before)
    return {}


def _groups_of_convolutions(program: Program, flow: Flow, kept: Kept) -> dict[str, int]:
    """Module -> number of groups that are kept."""
    groups: dict[str, int] = {}
    for node, rewriting in flow.rewritings.items():
        call = Call.of(node)
        for key in ("groups", "num_groups"):
            if key in call.arguments and call.get("weight") is not None:
                source = program.sources.get(call["weight"].name)
                values = rewriting.arguments(kept)
                for name in program.names.get(source.name, ()) if source is not None and key in values else ():
                    groups[name.rpartition(".")[0]] = values[key]
    return groups


def _by_width(model: nn.Module, flow: Flow, kept: Kept) -> Attributes:
    """New values of integer attributes of other modules that equal a width of their operators, where the new width is clear."""
    changes = _changes(flow, kept)
    attributes: Attributes = {}
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.MultiheadAttention):
            continue
        for key, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool) and not key.startswith("_"):
                become = changes.get(name, {}).get(value, set())
                if len(become) == 1 and value not in become:
                    attributes.setdefault(name, {})[key] = next(iter(become))
    return attributes


def _changes(flow: Flow, kept: Kept) -> dict[str, dict[int, set[int]]]:
    """Module -> old size -> new sizes, over all tensors computed by operators of the module and its submodules."""
    changes: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for node, axes in flow.axes.items():
        if isinstance(axes, tuple) and node not in flow.inside and isinstance(value_of(node), Tensor):
            for axis, size in zip(axes, sizes_of(value_of(node)), strict=True):
                if axis is not None:
                    for module in _calling_modules(node):
                        changes[module][size].add(kept.count(axis, size))
    return changes


def _calling_modules(node: Any) -> Iterator[str]:
    """The modules whose code calls an operator, outermost first."""
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        yield name_in_model(str(path))


def _merged(one: Attributes, other: Attributes) -> Attributes:
    return {name: {**other.get(name, {}), **one.get(name, {})} for name in {**one, **other}}


@dataclass(frozen=True)
class _Proof:
    """Compares modules with the cut program, using random weights of a scale at which errors are visible."""

    model: nn.Module
    program: Program
    flow: Flow
    example: Example

    @property
    def whole(self) -> Kept:
        """All units are kept."""
        return kept_without(self.flow, np.zeros(0, int))

    @torch.no_grad()
    def check(self, smaller: nn.Module, kept: Kept) -> None:
        """Raise `_DoesNotFollowError` unless the module computes the same as the cut program."""
        for scale in _SCALES:
            worst = self._largest_difference(smaller, kept, scale)
            if worst > _SAME:
                rounding = self._largest_difference(self.model, self.whole, scale) if worst <= _ROUNDING else 0.0
                if worst > _TIMES * rounding:
                    raise _DoesNotFollowError(f"its outputs would differ by {worst:.1e}")

    def _largest_difference(self, module: nn.Module, kept: Kept, scale: float) -> float:
        """The relative difference of the outputs of a module and of the program, both with the same random tensors."""
        tensors = self.program.tensors
        own = {name: tensor for name, tensor in tensors.items() if name in self.program.names}  # constants are not changed
        drawn = sliced(self.program, self.flow, kept, {**tensors, **drawn_tensors(own, scale=scale)})
        trial = copied(module).eval()
        named = {**dict(trial.named_parameters()), **dict(trial.named_buffers())}
        for name, tensor in drawn.items():
            if name in named:
                named[name].copy_(tensor)
        with global_draws(0):  # operators that draw random numbers draw the same in both
            try:
                expected = _tensors(run_cut(self.program, self.flow, kept, drawn, pytree.tree_leaves(self.example)))
            except Exception as error:  # an argument that no rule has adapted
                raise _DoesNotFollowError(f"its program cannot be cut: {error}") from error
            torch.manual_seed(0)
            try:
                actual = _tensors(trial(*self.example[0], **self.example[1]))
            except Exception as error:
                raise _DoesNotFollowError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        return _difference(actual, expected)


def drawn_tensors(tensors: Mapping[str, Tensor], seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """Random tensors of the same shapes.

    Args:
        tensors: by name; integer tensors are returned unchanged.
        seed: of the random numbers.
        scale: factor of all values.

    Returns:
        Tensors by name: with two or more dimensions normal with variance 1 / fan-in, others uniform in [0.5, 1.5), times
        `scale`.
    """
    generator = generator_from(seed)
    drawn = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            drawn[name] = tensor
            continue
        fan = math.prod(tensor.shape[1:]) if tensor.ndim > 1 else 0
        if fan:
            values = torch.randn(tensor.shape, generator=generator) / math.sqrt(fan)
        else:
            values = 0.5 + torch.rand(tensor.shape, generator=generator)
        drawn[name] = (scale * values).to(tensor.dtype)
    return drawn


def _tensors(outputs: Any) -> list[Tensor]:
    return [part for part in pytree.tree_leaves(outputs) if isinstance(part, Tensor)]


def _difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference over all outputs, each relative to its largest absolute value; infinite if shapes differ."""
    if len(actual) != len(expected) or any(a.shape != b.shape for a, b in zip(actual, expected, strict=True)):
        return math.inf
    return max(map(_distance, actual, expected), default=0.0)


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference relative to the largest absolute value; infinite if only one is NaN or infinite."""
    differ = one != other
    if not differ.any():
        return 0.0
    kind = torch.complex128 if one.is_complex() else torch.float64
    one, other = one.to(kind), other.to(kind)
    largest = other[other.isfinite()].abs().max() if other.isfinite().any() else torch.tensor(0.0)
    relative = float((one - other)[differ].abs().max() / largest.clamp_min(1e-30))
    return math.inf if math.isnan(relative) else relative
