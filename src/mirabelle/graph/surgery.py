"""Cuts a module: slices its tensors, sets the width attributes that its code reads, and compares the result with the program.

The module itself is returned only if it computes the same as the cut program with random weights. If its code contains literal
widths, the rewritten program replaces it, and the reason is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import numpy as np
from torch import nn

from mirabelle.errors import UserError
from mirabelle.graph.acceptance import Acceptance, DoesNotFollowError
from mirabelle.graph.attributes import Attributes, by_class, by_width, merged
from mirabelle.graph.example_signature import Example, ExampleSignature
from mirabelle.graph.flow import Flow, Kept
from mirabelle.graph.groups import axes_of_tensors
from mirabelle.graph.rewrite import Rewrite
from mirabelle.graph.rewritten import Rewritten
from mirabelle.graph.trace import Program
from mirabelle.model.architecture import architecture_of, attach
from mirabelle.model.edits import Cut, set_attributes, sliced_tensor, slices_in_text
from mirabelle.model.state import copied
from mirabelle.model.value_names import keep_names


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

    def own_code(attributes: Attributes) -> nn.Module:
        return _sliced_copy(model, indices, merged(known, attributes))

    acceptance = Acceptance(model, program, flow, kept, example)
    try:
        attributes = _needed(acceptance, own_code, guessed)
    except DoesNotFollowError as error:
        reason = str(error)
    else:
        smaller = own_code(attributes)
        attach(smaller, architecture_of(model).with_edit(Cut.of(indices, merged(known, attributes))))
        return smaller
    try:
        least = acceptance.fewest_samples
        acceptance.check(acceptance.compare(Rewritten(program, flow, kept, least)))
    except DoesNotFollowError as error:
        message = f"neither the model's code nor its rewritten program works with the new widths: {error}"
        raise UserError("E121", message, "list the affected layers in `exclude`, or use prune.Weights") from error
    smaller = Rewritten(program, flow, kept, least, program.unsaved)
    keep_names(smaller, model)
    rewritten = Rewrite(ExampleSignature.of(example).to_data(), reason, slices_in_text(indices), least, program.unsaved)
    attach(smaller, architecture_of(model).with_edit(rewritten))
    return smaller


def _sliced_copy(model: nn.Module, indices: Mapping[str, Mapping[int, list[int]]], attributes: Attributes) -> nn.Module:
    """A copy of the model with sliced tensors; the full tensors are not copied."""
    named = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    smaller = copied(model, {id(named[name]): sliced_tensor(named[name], kept) for name, kept in indices.items()})
    set_attributes(smaller, attributes)
    return smaller


def _needed(acceptance: Acceptance, own_code: Callable[[Attributes], nn.Module], guessed: Attributes) -> Attributes:
    """Those of the guessed attributes without which the module does not follow the cut program.

    Raises:
        DoesNotFollowError: if it does not follow with all of them either.
    """
    needed: Attributes = {}
    try:
        trial = acceptance.compare(own_code(needed))
    except DoesNotFollowError:
        if not guessed:
            raise
        needed, accepted = guessed, None
        for key in sorted({key for values in guessed.values() for key in values}):
            fewer = {name: {other: value for other, value in values.items() if other != key} for name, values in needed.items()}
            if any(fewer.values()):
                with contextlib.suppress(DoesNotFollowError):
                    needed, accepted = fewer, acceptance.compare(own_code(fewer))
        trial = acceptance.compare(own_code(guessed)) if accepted is None else accepted
    needed = {name: values for name, values in needed.items() if values}
    try:
        acceptance.check(trial, as_traced=needed != guessed)
    except DoesNotFollowError:
        if needed == guessed:
            raise
        acceptance.check(acceptance.compare(own_code(guessed)))
        return guessed
    return needed


def kept_indices(program: Program, flow: Flow, kept: Kept) -> dict[str, dict[int, list[int]]]:
    """For each tensor that loses elements: dimension -> indices that are kept."""
    indices: dict[str, dict[int, list[int]]] = {}
    for name, axes in axes_of_tensors(program, flow).items():
        for dimension, (axis, size) in enumerate(axes):
            stays = kept.of(axis, size)
            if not stays.all():
                indices.setdefault(name, {})[dimension] = np.flatnonzero(stays).tolist()
    return indices
