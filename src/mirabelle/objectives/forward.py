"""The result of a forward pass, which is the input of the terms of a training loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from mirabelle.task.batch import Batch, Outputs

Kind: TypeAlias = Literal["maps", "tokens", "vectors", "attention"]  # the kind of a layer's output


@dataclass(frozen=True)
class Forward:
    """One forward pass of a batch through a model.

    Args:
        batch: the inputs and targets.
        outputs: the model's output, a tuple if it has several.
        teacher: the teacher's pass over the same batch, None without a teacher.
        features: tensors inside the model by name: "name" is the output of a layer, "name:input" its input.
        progress: the share of the training that is done, in [0, 1].
    """

    batch: Batch
    outputs: Outputs
    teacher: Forward | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    progress: float = 0.0
