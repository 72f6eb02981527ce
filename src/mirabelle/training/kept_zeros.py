"""Pruned weights stay zero during training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirabelle.model.architecture import architecture_of
from mirabelle.training.shards import own_part


class KeptZeros:
    """Masks that set the pruned weights of a model to zero after every optimizer step.

    Only tensors that a pruning step has recorded are masked; other zeros, such as those of initial biases, are trained. The
    state of the optimizer is masked too, so that pruned weights accumulate no momentum.

    Args:
        model: the model in training.
        optimizer: its optimizer.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self.refresh()

    def refresh(self) -> None:
        """Update the masks to the current zeros of the model."""
        parameters = dict(self._model.named_parameters())
        pruned = [parameters[name] for name in architecture_of(self._model).pruned if name in parameters]
        self._masks = {parameter: (own_part(parameter) != 0).to(parameter.dtype) for parameter in pruned}

    @torch.no_grad()
    def keep(self) -> None:
        """Multiply the weights and the optimizer state by the masks."""
        if not self._masks:
            return
        held: list[Tensor] = []
        masks: list[Tensor] = []
        for parameter, mask in self._masks.items():
            state = self._optimizer.state.get(parameter, {}).values()
            same_shape = [value for value in state if isinstance(value, Tensor) and value.shape == parameter.shape]
            held += map(own_part, [parameter, *same_shape])
            masks += [mask] * (1 + len(same_shape))
        torch._foreach_mul_(held, masks)

    @torch.no_grad()
    def without_signs(self) -> None:
        """Make −0.0, which a mask leaves of a negative weight, 0.0: in a packed file, signs of zeros take a bit each."""
        for parameter in self._masks:
            own_part(parameter).add_(0.0)
