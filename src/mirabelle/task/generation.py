"""Greedy decoding: the sequences that a sequence-to-sequence model generates."""

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
    """Greedy decoding: y_t = argmax of the logits at position t, given begin, y_1 … y_{t−1}.

    One input of the model, the decoder input (batch, length), is `begin` followed by the symbols generated so far. At each
    position the model returns the logits of the next symbol, (batch, length, symbols), which depend on this position, those
    before it, and the other inputs.

    All positions are computed in parallel, repeatedly from the result before, until nothing changes. The result is the same as
    when decoding symbol by symbol, because position t is right from the t-th call on, and mostly needs fewer calls.

    Args:
        begin: symbol at the beginning of the decoder input.
        end: symbol that ends a sequence.
        written: position or name of the decoder input.

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
        """Generate sequences with their end symbol, padded with −100, (batch, length).

        A sequence without an end symbol is cut at the length.

        Args:
            run: inputs -> logits.
            inputs: inputs of the model; of the decoder input, only the length is used.
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
        """The largest number of symbols that can be generated for these inputs: the length of the decoder input."""
        return int(inputs[self._key(inputs)].shape[1])

    def reading(self, inputs: Inputs, sequences: Tensor) -> Inputs:
        """The inputs with given sequences as decoder input (teacher forcing).

        Args:
            inputs: inputs of the model.
            sequences: padded with −100, of the length of the decoder input, (batch, length).
        """
        return self._replaced(inputs, self._following(sequences))

    def _following(self, sequences: Tensor) -> Tensor:
        """`begin` and the symbols shifted by one position, padded with `end`."""
        shifted = torch.cat([torch.full_like(sequences[:, :1], self.begin), sequences[:, :-1]], 1)
        return shifted.masked_fill(shifted == UNLABELLED, self.end)

    def _key(self, inputs: Inputs) -> Any:
        return self.written if isinstance(self.written, str) else range(len(inputs))[self.written]

    def _replaced(self, inputs: Inputs, written: Tensor) -> Inputs:
        key = self._key(inputs)
        if isinstance(key, str):
            return {**inputs, key: written}
        return tuple(written if place == key else part for place, part in enumerate(inputs))
