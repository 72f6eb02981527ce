"""Call layers of Keras as in inference, and so that the call can be exported with any number of samples."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mirabelle.sources.models.keras_model.library import library

_AUGMENTING = ("Random", "MixUp", "CutMix", "AugMix")  # beginnings of the names of Keras' classes
_CHANGING = ("RandomCrop",)  # the augmentation that cuts in inference, too
_RECURRENT = ("dropout", "recurrent_dropout")  # of cells, which draw for them even where they do not use what they drew


def called(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """What a layer of Keras computes in inference: augmentation, noise and dropout change nothing."""
    kind = type(layer).__name__
    if kind.startswith(_AUGMENTING) and kind not in _CHANGING and type(layer).__module__.startswith("keras."):
        return args[0]  # Keras draws and discards; acceptance shows that the values are the same
    given = {**kwargs, "training": False} if getattr(layer, "_call_has_training_arg", False) else kwargs
    with _exportable(layer):
        return layer(*args, **given)


@contextmanager
def _exportable(layer: Any) -> Iterator[None]:
    """A context in which a layer computes the same by operators that hold for any batch.

    Penalties of activations are divided by a number of samples, and Keras' loop over time steps makes a list of the samples.
    """
    with ExitStack() as stack:
        for part in getattr(layer, "_flatten_layers", list)():
            if part.activity_regularizer is not None:
                stack.enter_context(patch.object(part, "activity_regularizer", None))
            for name in _RECURRENT if all(hasattr(part, name) for name in (*_RECURRENT, "state_size")) else ():
                stack.enter_context(patch.dict(vars(part), {name: 0.0}))
        stack.enter_context(patch.object(importlib.import_module("keras.src.backend"), "rnn", _rnn))
        yield


def _rnn(  # noqa: PLR0917 (the interface is that of Keras)
    step_function: Any,
    inputs: Any,
    initial_states: Any,
    go_backwards: bool = False,  # noqa: FBT001, FBT002
    mask: Tensor | None = None,
    constants: Sequence[Any] | None = None,
    *,
    time_major: bool = False,
    zero_output_for_mask: bool = False,
    return_all_outputs: bool = True,
    **_: Any,
) -> tuple[Any, Any, Any]:
    """`keras.backend.rnn`: the last output, all outputs, and the last states; at masked steps, the states stay as they were."""
    tree, axis = library().tree, 0 if time_major else 1
    steps = list(zip(*(part.unbind(axis) for part in tree.flatten(inputs)), strict=True))
    shown: list[Any] = [None] * len(steps) if mask is None else list(mask.bool().unbind(axis))
    if go_backwards:
        steps, shown = steps[::-1], shown[::-1]
    states, outputs = tuple(initial_states), list[Any]()
    for step, counts in zip(steps, shown, strict=True):
        output, after = step_function(tree.pack_sequence_as(inputs, list(step)), (*states, *(constants or ())))
        if counts is not None:
            before = outputs[-1] if outputs and not zero_output_for_mask else tree.map_structure(torch.zeros_like, output)
            output = tree.map_structure(partial(_where, counts), output, before)
            kept = [_where(counts, *pair) for pair in zip(tree.flatten(after), tree.flatten(states), strict=True)]
            after = tree.pack_sequence_as(states, kept)
        states, outputs = tuple(after), [*outputs, output] if return_all_outputs else [output]
    return outputs[-1], tree.map_structure(lambda *parts: torch.stack(parts, axis), *outputs), states


def _where(counts: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`one` for the samples that count, and `other` for the rest."""
    return torch.where(counts.reshape(-1, *[1] * (one.ndim - 1)), one, other)
