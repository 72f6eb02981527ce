"""What a term of the loss may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from mirabelle.task.batch import Batch, Outputs

Kind: TypeAlias = Literal["maps", "tokens", "vectors", "attention"]  # what a layer gives


@dataclass(frozen=True)
class Forward:
    """One pass of a batch through a model: everything a term may look at; several outputs are a tuple."""

    batch: Batch
    outputs: Outputs
    teacher: Forward | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    progress: float = 0.0
