"""Bring a student's features to the shape of the teacher's: pool positions, and map the width by a learned linear layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.precision import autocast
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
    """A bound term that compares pairs of layers; the mean over the pairs.

    Args:
        pairs: the layers to compare.
        compare: (student's features, teacher's features) -> scalar, both in float32; feature maps have the channels in
            dimension 1.
        projects: whether a learned linear layer maps the student's width to the teacher's if they differ.
        resizes: whether the larger feature map of a pair is average-pooled to the size of the smaller one.
        real_tokens: whether tokens with 0 in the inputs' "attention_mask" are left out.

    Raises:
        UserError: E111 if the shapes of a pair cannot be matched.
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
    """A learned linear map from a layer's width to another, applied at every position; the identity if the widths are equal."""
    if student.width == width:
        return nn.Identity()
    if student.channels == 1 and len(student.shape) > 2:  # noqa: PLR2004
        made: nn.Module = _BY_POINT[len(student.shape)](student.width, width, 1)
        return made
    return nn.Linear(student.width, width)


def same_places(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both feature maps, (batch, channels, ...), average-pooled to the smaller of their two sizes in every dimension."""
    sizes = tuple(map(min, student.shape[2:], teacher.shape[2:]))
    one, other = (part if part.shape[2:] == sizes else _POOLED[part.ndim](part, sizes) for part in (student, teacher))
    return one, other


def in_precision_of(features: Tensor) -> AbstractContextManager[None]:
    """A context in which layers run in the precision of these features: under autocast if they are bfloat16."""
    return autocast("bfloat16" if features.dtype is torch.bfloat16 else "float32", features.device)


def real_tokens(features: Tensor, inputs: Inputs) -> Tensor:
    """The features of the tokens that the attention mask keeps, of shape (kept tokens, ...).

    Args:
        features: (batch, tokens, width), or attention of shape (batch, heads, tokens, tokens).
        inputs: the model's inputs. If they are not a dict with an "attention_mask" for these tokens, the features are returned
            unchanged.
    """
    by_token = features.transpose(1, 2) if features.ndim == 4 else features  # noqa: PLR2004
    mask = mask_of(by_token, inputs)
    return features if mask is None else by_token[mask]


def mask_of(features: Tensor, inputs: Inputs) -> Tensor | None:
    """The attention mask for features of shape (batch, tokens, ...), boolean (batch, tokens); None if the inputs have none."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if mask is not None and mask.shape == features.shape[:2] else None


def _check_comparable(pair: Pair, *, resizes: bool) -> None:
    one, other = pair.student, pair.teacher
    alike = len(one.shape) == len(other.shape) and one.channels == other.channels
    if not alike or (one.places != other.places and not (resizes and one.channels == 1)):
        message = f"layer {one} of the student and {other} of the teacher cannot be compared"
        raise UserError("E111", message, "name `layers` and `teacher_layers` whose outputs have matching shapes")
    if math.prod(one.shape) == 0:
        raise UserError("E111", f"the output of layer {one} of the student is empty", "name another layer")
