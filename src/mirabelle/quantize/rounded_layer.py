"""The layer that trains with weights and a bias rounded to the multiples of learned steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.model.replacement import uncounted
from mirabelle.numerics.entropy import MOST, first_step
from mirabelle.quantize.codebook_layer import CodebookLayer
from mirabelle.quantize.dense_layers import WEIGHTED, applied_of, bias_of, weight_of
from mirabelle.quantize.simulated import Step, levels

FEWEST_BITS = 1.2  # entropy with which weights begin at the least: about 70 % of them are 0
_BITS_OF_BIASES = 3.0


class RoundedLayer(nn.Module):
    """y = layer(x, s · round(w / s), t · round(b / t)), with one learned step s for the weight and one, t, for the bias.

    Parameters: weight, with its outputs on the first axis; bias; and the logarithms of both steps, scalars. Levels are at most
    ±127.

    Args:
        dense: Linear, Conv1d, Conv2d, Conv3d, Embedding, or Conv1D of transformers.
        weight: the parameter of its weight, with the outputs on the first axis; layers that share a weight share it.
        step: of the weight; shared with it.
    """

    def __init__(self, dense: nn.Module, weight: nn.Parameter, step: Step) -> None:
        super().__init__()
        bias = bias_of(dense)
        self.applied = None if isinstance(dense, nn.Embedding) else applied_of(dense)
        self.weight, self.weight_step = weight, step
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        self.bias_step = None if bias is None else learned_step(bias, _BITS_OF_BIASES)
        self._before: list[Tensor] = []

    @uncounted()
    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self._before = [parameter.detach().clone() for parameter, _ in self.positions()]
        weight = _rounded(self.weight, self.weight_step)
        if self.applied is None:
            return F.embedding(inputs, weight)
        bias = None
        if self.bias is not None and self.bias_step is not None:
            bias = _rounded(self.bias, self.bias_step)
        return self.applied(inputs, weight, bias)

    def positions(self) -> Sequence[tuple[Tensor, Tensor]]:
        """The weight with w / s, (outputs, all other axes), and the bias with b / t, (1, outputs)."""
        weight_step, *bias_step = self._steps()
        found: list[tuple[Tensor, Tensor]] = [(self.weight, (self.weight / weight_step).flatten(1))]
        if self.bias is not None:
            found.append((self.bias, (self.bias / bias_step[0])[None]))
        return found

    def _steps(self) -> list[Tensor]:
        """The step of the weight, and that of the bias, if there is one."""
        steps: list[Tensor] = [self.weight_step(self.weight.numel())]
        if self.bias is not None and self.bias_step is not None:
            steps.append(self.bias_step(self.bias.numel()))
        return steps

    @torch.no_grad()
    def damp(self, strength: float, done: set[int]) -> None:
        """Move each number towards its level, at most to it: w ← w + min(strength · |Δw|, s) · (q − w / s).

        |Δw| is the root mean square of the change of the tensor since the last pass in training, q = round(w / s) within ±127.
        Without a pass since the last call nothing is moved.

        Args:
            strength: ≥ 0.
            done: identities of parameters that have been moved, to which those of this layer are added.
        """
        for (parameter, numbers), step, before in zip(self.positions(), self._steps(), self._before, strict=False):
            if id(parameter) not in done:
                length = torch.minimum(strength * (parameter - before).square().mean().sqrt(), step)
                parameter.add_((length * (numbers.round().clamp_(-MOST, MOST) - numbers)).view_as(parameter))
                done.add(id(parameter))
        self._before = []

    @torch.no_grad()
    def rounded(self) -> tuple[Tensor, Tensor | None]:
        """Copies of weight and bias as they are rounded."""
        bias = None if self.bias is None or self.bias_step is None else _rounded(self.bias, self.bias_step)
        return _rounded(self.weight, self.weight_step), bias

    @torch.no_grad()
    def clear(self, weight: Tensor, bias: Tensor | None) -> None:
        """Set numbers to zero.

        Args:
            weight: which of the weight, booleans.
            bias: which of the bias.
        """
        self.weight.masked_fill_(weight, 0)
        if self.bias is not None and bias is not None:
            self.bias.masked_fill_(bias, 0)

    @torch.no_grad()
    def as_codebook(self, dense: nn.Module) -> CodebookLayer:
        """The layer with the same values in a codebook, which stores them as bfloat16."""
        step = self.weight_step(self.weight.numel())
        bias = None
        if self.bias is not None and self.bias_step is not None:
            bias = _rounded(self.bias, self.bias_step).bfloat16().float() + 0.0  # −0.0 becomes 0.0
        return CodebookLayer.of_levels(dense, levels(self.weight, step, -MOST, MOST), step, bias)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}"


def learned_step(values: Tensor, bits: float) -> Step:
    """A step that begins where the levels of the values have so many bits of entropy."""
    return Step(torch.tensor(first_step(values, bits)), MOST)


def rounded_layers(layers: Sequence[nn.Module], bits: float = FEWEST_BITS) -> list[RoundedLayer]:
    """A layer for training for each dense layer; those that shared a weight share it and its step.

    Args:
        layers: dense layers.
        bits: entropy of the levels of each weight at the beginning.
    """
    from mirabelle.model.state import memory_of

    weights: dict[object, tuple[nn.Parameter, Step]] = {}
    found = []
    for dense in layers:
        given = weight_of(dense, WEIGHTED)
        own = nn.Parameter(given.clone(memory_format=torch.contiguous_format))
        weight, step = weights.setdefault(memory_of(given), (own, learned_step(given, bits)))
        found.append(RoundedLayer(dense, weight, step))
    return found


def _rounded(values: Tensor, step: Step) -> Tensor:
    size: Tensor = step(values.numel())
    return size * levels(values, size, -MOST, MOST)
