"""The result of a forward pass, which is the input of the terms of a training loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from mirabelle.task.batch import Batch, Outputs

MeanOver: TypeAlias = Literal["samples", "targets", "places", "tokens", "nothing"]  # see `Shares`; "nothing" for a sum
Kind: TypeAlias = Literal["maps", "tokens", "vectors", "attention"]  # the kind of a layer's output


@dataclass(frozen=True)
class Shares:
    """The shares of a part of a batch in means over the whole batch. The mean is the sum of share · mean of a part.

    Args:
        samples: of the samples.
        targets: of the targets that count in the loss of the task, with their class weights; −100 does not count.
        places: of the places with one class each, such as tokens, that have a target; where a sample has one, of the samples.
        tokens: of the tokens that the attention mask keeps; without one, of the samples.
    """

    samples: float = 1.0
    targets: float = 1.0
    places: float = 1.0
    tokens: float = 1.0

    def of(self, mean_over: MeanOver) -> float:
        """The share in a mean."""
        share: float = 1.0 if mean_over == "nothing" else getattr(self, mean_over)
        return share


@dataclass(frozen=True)
class Forward:
    """One forward pass of a batch through a model.

    Args:
        batch: the inputs and targets.
        outputs: the model's output, a tuple if it has several.
        teacher: the teacher's pass over the same batch, None without a teacher.
        features: tensors inside the model by name: "name" is the output of a layer, "name:input" its input.
        progress: the share of the training that is done, in [0, 1].
        shares: of the batch, if it is a part of one.
    """

    batch: Batch
    outputs: Outputs
    teacher: Forward | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    progress: float = 0.0
    shares: Shares = Shares()
