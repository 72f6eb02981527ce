"""Cuts a module: slices its tensors, sets the width attributes that its code reads, and compares the result with the program.

The module itself is returned only if it computes the same as the cut program with random weights. If its code contains literal
widths, the rewritten program replaces it, and the reason is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mirabelle.errors import UserError
from mirabelle.graph.attributes import Attributes, by_class, by_width, merged
from mirabelle.graph.example_signature import Example, ExampleSignature
from mirabelle.graph.flow import Flow, Kept
from mirabelle.graph.groups import axes_of_tensors
from mirabelle.graph.interpret import kept_without, run_cut, sliced
from mirabelle.graph.rewrite import Rewrite
from mirabelle.graph.rewritten import Rewritten
from mirabelle.graph.trace import Program
from mirabelle.model.architecture import architecture_of, attach
from mirabelle.model.edits import Cut, set_attributes, slice_tensors, slices_in_text
from mirabelle.model.state import copied
from mirabelle.model.value_names import keep_names
from mirabelle.numerics.draws import generator_from, global_draws

_SAME = 1e-6  # largest relative difference between the same operators on the same numbers
# Larger differences, up to _ROUNDING, are accepted if they are below _TIMES the effect of rounding in the full model.
_ROUNDING, _TIMES = 1e-4, 10.0
_SCALES = 1.0, 0.25  # of random weights: with the smaller one, a final sigmoid does not saturate


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
    known, guessed = by_class(model, program, flow, kept, indices), by_width(model, flow, kept)
    smaller = copied(model)
    slice_tensors(smaller, indices)
    set_attributes(smaller, known)
    proof = _Proof(model, program, flow, example)
    try:
        attributes = merged(known, _proven(proof, smaller, kept, guessed))
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
    attach(smaller, architecture_of(model).with_edit(Cut.of(indices, attributes)))
    return smaller


def _proven(proof: _Proof, smaller: nn.Module, kept: Kept, guessed: Attributes) -> Attributes:
    """Set those of the guessed attributes, in place, without which the module does not follow the cut program.

    Raises:
        _DoesNotFollowError: if it does not follow with all of them either.
    """
    try:
        proof.check(smaller, kept)
    except _DoesNotFollowError:
        if not guessed:
            raise
    else:
        return {}
    set_attributes(smaller, guessed)
    proof.check(smaller, kept)
    for key in sorted({key for values in guessed.values() for key in values}):
        back = {name: {key: getattr(proof.model.get_submodule(name), key)} for name, values in guessed.items() if key in values}
        set_attributes(smaller, back)
        try:
            proof.check(smaller, kept)
        except _DoesNotFollowError:
            set_attributes(smaller, {name: {key: guessed[name][key]} for name in back})
        else:
            guessed = {
                name: {other: value for other, value in values.items() if other != key} for name, values in guessed.items()
            }
    return {name: values for name, values in guessed.items() if values}


def kept_indices(program: Program, flow: Flow, kept: Kept) -> dict[str, dict[int, list[int]]]:
    """For each tensor that loses elements: dimension -> indices that are kept."""
    indices: dict[str, dict[int, list[int]]] = {}
    for name, axes in axes_of_tensors(program, flow).items():
        for dimension, (axis, size) in enumerate(axes):
            stays = kept.of(axis, size)
            if not stays.all():
                indices.setdefault(name, {})[dimension] = np.flatnonzero(stays).tolist()
    return indices


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
        named = {**dict(trial.named_parameters(remove_duplicate=False)), **dict(trial.named_buffers(remove_duplicate=False))}
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
