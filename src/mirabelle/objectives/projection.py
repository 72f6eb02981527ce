"""What brings a student's features into the shape of the teacher's: places pooled, widths mapped by a layer that is learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.objectives.forward import Forward
from mirabelle.objectives.layer_matching import Pair, TappedLayer
from mirabelle.task.batch import Inputs

_POOLED: Mapping[int, Callable[[Tensor, Any], Tensor]] = {
    3: F.adaptive_avg_pool1d,
    4: F.adaptive_avg_pool2d,
    5: F.adaptive_avg_pool3d,
}
_BY_POINT = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


class PairedFeatures(nn.Module):
    """A comparison of pairs of layers, mean over them.

    Args:
        pairs: of layers.
        compare: the distance of features of a pair, student's first; both float32, with their width in dimension 1 for maps.
        projects: whether the student's widths are mapped to the teacher's where they differ.
        resizes: whether the larger maps are pooled to the sizes of the smaller ones.
        real_tokens: whether tokens that an attention mask among the inputs hides are left out.

    Raises:
        UserError: E111 for a pair whose shapes cannot be matched.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        compare: Callable[[Tensor, Tensor], Tensor],
        *,
        projects: bool = False,
        resizes: bool = True,
        real_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.real_tokens = real_tokens
        self.pairs, self.compare = pairs, compare
        for pair in pairs:
            _check_comparable(pair, resizes=resizes)
        self.projectors = nn.ModuleList(
            projector(pair.student, pair.teacher.width) if projects else nn.Identity() for pair in pairs
        )

    @property
    def student_layers(self) -> tuple[str, ...]:
        return tuple(pair.student.name for pair in self.pairs)

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        return tuple(pair.teacher.name for pair in self.pairs)

    def forward(self, forward: Forward) -> Tensor:
        assert forward.teacher is not None, "Objective.bind refuses a task without teacher"
        parts = []
        for pair, project in zip(self.pairs, self.projectors, strict=True):
            student, teacher = forward.features[pair.student.name], forward.teacher.features[pair.teacher.name].float()
            student, teacher = same_places(student, teacher) if pair.student.channels == 1 else (student, teacher)
            with in_precision_of(student):
                student = project(student).float()
            if self.real_tokens:
                student, teacher = (real_tokens(part, forward.batch.inputs) for part in (student, teacher))
            parts.append(self.compare(student, teacher))
        total: Tensor = sum(parts[1:], parts[0])
        return total / len(parts)


def projector(student: TappedLayer, width: int) -> nn.Module:
    """A linear map of a layer's width to another, place by place; nothing where the widths are equal."""
    if student.width == width:
        return nn.Identity()
    if student.channels == 1 and len(student.shape) > 2:  # noqa: PLR2004
        made: nn.Module = _BY_POINT[len(student.shape)](student.width, width, 1)
        return made
    return nn.Linear(student.width, width)


def same_places(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the smaller of their sizes, (batch, channels, ...), the larger maps averaged."""
    sizes = tuple(map(min, student.shape[2:], teacher.shape[2:]))
    one, other = (part if part.shape[2:] == sizes else _POOLED[part.ndim](part, sizes) for part in (student, teacher))
    return one, other


def in_precision_of(features: Tensor) -> AbstractContextManager[None]:
    """What is trained along on features runs as the model that gave them: under autocast where they are bfloat16."""
    return torch.autocast(features.device.type, torch.bfloat16, enabled=features.dtype is torch.bfloat16)


def real_tokens(features: Tensor, inputs: Inputs) -> Tensor:
    """Of (batch, tokens, width) or (batch, heads, tokens, tokens) what belongs to real tokens, (real tokens, ...).

    All of it, and as it was, where the inputs are no dict with an "attention_mask" of these tokens.
    """
    by_token = features.transpose(1, 2) if features.ndim == 4 else features  # noqa: PLR2004
    mask = mask_of(by_token, inputs)
    return features if mask is None else by_token[mask]


def mask_of(features: Tensor, inputs: Inputs) -> Tensor | None:
    """Of (batch, tokens, ...), which tokens are real, (batch, tokens); None where the inputs hide none of them."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if mask is not None and mask.shape == features.shape[:2] else None


def _check_comparable(pair: Pair, *, resizes: bool) -> None:
    one, other = pair.student, pair.teacher
    alike = len(one.shape) == len(other.shape) and one.channels == other.channels
    if not alike or (one.places != other.places and not (resizes and one.channels == 1)):
        message = f"layer {one} of the student and {other} of the teacher cannot be compared"
        raise UserError("E111", message, "name `layers` and `teacher_layers` that give the same kind of thing")
    if math.prod(one.shape) == 0:
        raise UserError("E111", f"layer {one} of the student gives nothing", "name another")
