"""What a model of sequences to sequences writes: it reads what it has written when it is asked for more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.task.batch import Inputs, map_tensors


@dataclass(frozen=True)
class Generation:
    """Sequences of the likeliest symbol each time: y_t = argmax of the scores at place t, given begin, y_1 … y_{t−1}.

    One input of the model is what has been written so far, (batch, length): `begin`, then the symbols. The model gives scores
    of what follows at each place, (batch, length, symbols), from this place, those before it, and the other inputs.

    All places are computed at once, again and again from what came out before, until nothing changes. That gives the same
    sequences as one symbol after the other, for place t is right from the t-th call on, and mostly takes fewer calls.

    Args:
        begin: symbol in front of what is written.
        end: symbol that ends a sequence.
        written: the input that takes what is written: its position, or its name.

    Example:
        >>> counts = Generation(begin=0, end=4)
        >>> inputs = (torch.zeros(1, 1), torch.zeros(1, 6, dtype=torch.long))
        >>> counts(lambda given: torch.eye(6)[(given[1] + 1) % 6], inputs)
        tensor([[   1,    2,    3,    4, -100, -100]])

    Source: fixed points instead of steps: Song, Meng, Liao, Ermon 2021, arXiv:2002.03629; for translation: Santilli et al.
    2023, arXiv:2305.10427.
    """

    begin: int
    end: int
    written: int | str = -1

    def __call__(self, run: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
        """Sequences with their end, filled up with −100, (batch, length); what finds no end is cut at the length.

        Args:
            run: gives the scores for inputs.
            inputs: of the model; what they hold as written tells the length, and nothing else.
        """
        found = torch.full_like(inputs[self._key(inputs)], UNLABELLED)
        left = torch.arange(len(found))  # rows that still change
        written = self._following(found)
        for _ in range(found.shape[1]):
            own = map_tensors(inputs, partial(torch.index_select, dim=0, index=left))
            following = run(self._replaced(own, written)).argmax(-1)
            ended = following == self.end
            found[left] = following.masked_fill((ended.cumsum(1) - ended.long()) > 0, UNLABELLED)
            before, written = written, self._following(found[left])
            changed = (before != written).any(1)
            left, written = left[changed], written[changed]
            if not len(left):
                break
        return found

    def length(self, inputs: Inputs) -> int:
        """The most symbols that these inputs have room for."""
        return int(inputs[self._key(inputs)].shape[1])

    def reading(self, inputs: Inputs, sequences: Tensor) -> Inputs:
        """The inputs under which the model is asked for each symbol of the sequences, which are as long as what is written."""
        return self._replaced(inputs, self._following(sequences))

    def _following(self, sequences: Tensor) -> Tensor:
        """`begin` and the symbols one place on; behind the end there are ends."""
        shifted = torch.cat([torch.full_like(sequences[:, :1], self.begin), sequences[:, :-1]], 1)
        return shifted.masked_fill(shifted == UNLABELLED, self.end)

    def _key(self, inputs: Inputs) -> Any:
        return self.written if isinstance(self.written, str) else range(len(inputs))[self.written]

    def _replaced(self, inputs: Inputs, written: Tensor) -> Inputs:
        key = self._key(inputs)
        if isinstance(key, str):
            return {**inputs, key: written}
        return tuple(written if place == key else part for place, part in enumerate(inputs))
